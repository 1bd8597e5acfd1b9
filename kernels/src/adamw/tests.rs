use candle_core::{DType, Device, Result, Tensor};
use half::bf16;
use proptest::prelude::*;

use super::cpu::TASK;
use super::*;
use crate::check;

const PARAMS: Params = Params {
    lr: 1e-2,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    step: 1,
    grad_scale: 0.5,
};

fn bits(tensor: &Tensor) -> Result<Vec<u32>> {
    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.iter().map(|x| x.to_bits()).collect())
}

/// The formula in f64, steps 1 to `steps` along the same gradient.
fn oracle(p: &Tensor, g: &Tensor, steps: u64) -> Result<Tensor> {
    let wide = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let (mut values, grads) = (wide(p)?, wide(g)?);
    for (value, grad) in values.iter_mut().zip(grads) {
        let (mut m, mut v) = (0.0, 0.0);
        let grad = grad * PARAMS.grad_scale;
        for step in 1..=steps {
            m = PARAMS.beta1 * m + (1.0 - PARAMS.beta1) * grad;
            v = PARAMS.beta2 * v + (1.0 - PARAMS.beta2) * grad * grad;
            let m_hat = m / (1.0 - PARAMS.beta1.powf(step as f64));
            let v_hat = v / (1.0 - PARAMS.beta2.powf(step as f64));
            *value -= PARAMS.lr * PARAMS.weight_decay * *value;
            *value -= PARAMS.lr * m_hat / (v_hat.sqrt() + PARAMS.eps);
        }
    }
    Tensor::from_vec(values, p.dims(), &Device::Cpu)
}

/// Every kind of weights with every kind of moments and of gradients.
fn every_variant_follows_the_formula(elements: usize) -> Result<()> {
    let x = check::random(&[&[elements], &[elements]], DType::F32)?;
    let start = x[0].to_dtype(DType::BF16)?;
    for grad_dtype in [DType::F32, DType::BF16] {
        let grad = x[1].to_dtype(grad_dtype)?;
        let expected = oracle(&start, &grad, 3)?;
        for eight_bits in [false, true] {
            let moments = || {
                if eight_bits {
                    Moments::blockwise8_zeros(elements, &Device::Cpu)
                } else {
                    Moments::f32_zeros(elements, &Device::Cpu)
                }
            };
            // In 8 bits the smallest of a block's values may lose all of a step but the first, the
            // others a few percent of it.
            let bound = if eight_bits { 2.2 * PARAMS.lr } else { 1e-6 };
            let mean_bound = if eight_bits { 0.1 * PARAMS.lr } else { 1e-6 };
            let (alone, master) = (start.to_dtype(DType::F32)?, start.to_dtype(DType::F32)?);
            let (param, stochastic) = (start.copy()?, start.copy()?);
            let moments = [moments()?, moments()?, moments()?];
            for step_index in 1..=3 {
                let params = Params { step: step_index, ..PARAMS };
                let both = Weights::Master { master: &master, param: &param };
                let random = Weights::Stochastic { param: &stochastic, seed: 5, tensor: 9 };
                for (weights, moments) in
                    [Weights::F32(&alone), both, random].into_iter().zip(&moments)
                {
                    step(weights, moments, &grad, params)?;
                }
            }
            check::close(&expected, &alone, bound)?;
            let apart = (&expected - alone.to_dtype(DType::F64)?)?.abs()?.mean_all()?;
            assert!(apart.to_scalar::<f64>()? < mean_bound, "{apart} > {mean_bound}");
            assert_eq!(bits(&alone)?, bits(&master)?);
            assert_eq!(bits(&param)?, bits(&master.to_dtype(DType::BF16)?)?);
            // Three roundings to a unit in the last place each, of values below 1.1.
            check::close(&expected, &stochastic, bound + 3.0 / 128.0)?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn every_variant_follows_the_formula_on_ragged_lengths(elements in 1usize..1500) {
        every_variant_follows_the_formula(elements).expect("tensors of these shapes");
    }
}

#[test]
fn every_variant_follows_the_formula_across_tasks() -> Result<()> {
    every_variant_follows_the_formula(2 * TASK + 300)
}

/// The plain loop, rounded to f32 after each operation as it stands there.
#[test]
fn f32_steps_round_as_the_formula_is_written() -> Result<()> {
    let x = check::random(&[&[700], &[700]], DType::F32)?;
    let (p, g) = (x[0].copy()?, x[1].to_vec1::<f32>()?);
    let mut expected = p.to_vec1::<f32>()?;
    let (mut m, mut v) = (vec![0f32; 700], vec![0f32; 700]);
    let moments = Moments::f32_zeros(700, &Device::Cpu)?;
    for step_index in 1..=4 {
        let params = Params { step: step_index, ..PARAMS };
        step(Weights::F32(&p), &moments, &x[1], params)?;
        let c = Coefficients::new(params);
        for i in 0..700 {
            let grad = g[i] * c.grad_scale;
            m[i] = c.beta1 * m[i] + (1.0 - c.beta1) * grad;
            v[i] = c.beta2 * v[i] + (1.0 - c.beta2) * (grad * grad);
            let denominator = v[i].sqrt() * c.inv_root_correction + c.eps;
            expected[i] = expected[i] * c.keep - c.step_size * (m[i] / denominator);
        }
    }
    assert_eq!(bits(&p)?, expected.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
    let (first, second) = moments.to_f32()?;
    assert_eq!((first.to_vec1::<f32>()?, second.to_vec1::<f32>()?), (m, v));
    Ok(())
}

#[test]
fn the_composed_path_agrees() -> Result<()> {
    let [p, g]: [Tensor; 2] =
        check::random(&[&[5, 4], &[5, 4]], DType::F32)?.try_into().expect("two");
    let (copy, param) = (p.copy()?, p.to_dtype(DType::BF16)?);
    let moments = Moments::f32_zeros((5, 4), &Device::Cpu)?;
    let others = Moments::f32_zeros((5, 4), &Device::Cpu)?;
    let shares = p.clone();
    for step_index in 1..=3 {
        let params = Params { step: step_index, ..PARAMS };
        step(Weights::F32(&p), &moments, &g, params)?;
        step_composed(Weights::Master { master: &copy, param: &param }, &others, &g, params)?;
    }
    check::close(&p, &copy, 1e-6)?;
    check::close(&shares, &p, 0.0)?;
    check::close(&param, &copy.to_dtype(DType::BF16)?, 0.0)?;
    check::close(&moments.to_f32()?.1, &others.to_f32()?.1, 1e-6)?;
    let bytes = Moments::blockwise8_zeros(20, &Device::Cpu)?;
    assert!(step_composed(Weights::F32(&p), &bytes, &g, PARAMS).is_err());
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let x = check::random(&[&[300], &[299]], DType::F32)?;
    let (weight, short) = (&x[0], &x[1]);
    let narrow = weight.to_dtype(DType::BF16)?;
    let moments = Moments::f32_zeros(300, &Device::Cpu)?;
    let bytes = Moments::blockwise8_zeros(256, &Device::Cpu)?;
    let refused = |weights, moments, grad| step(weights, moments, grad, PARAMS).is_err();
    assert!(refused(Weights::F32(weight), &moments, short));
    assert!(refused(Weights::F32(&narrow), &moments, weight));
    assert!(refused(Weights::F32(weight), &bytes, weight));
    assert!(refused(Weights::Master { master: weight, param: weight }, &moments, weight));
    assert!(refused(Weights::Stochastic { param: weight, seed: 0, tensor: 0 }, &moments, weight));
    assert!(refused(Weights::F32(weight), &moments, &weight.to_dtype(DType::F64)?));
    assert_eq!((moments.bytes(), bytes.bytes()), (2400, 520));
    Ok(())
}

#[test]
fn every_variant_gives_the_same_bits_on_any_thread_count() -> Result<()> {
    let elements = 5 * TASK + 77;
    let x = check::random(&[&[elements], &[elements]], DType::F32)?;
    let run = |threads, seed| -> Result<Vec<Vec<u32>>> {
        let (master, narrow) = (x[0].copy()?, x[0].to_dtype(DType::BF16)?);
        let stochastic = narrow.copy()?;
        let bytes = Moments::blockwise8_zeros(elements, &Device::Cpu)?;
        let plain = Moments::f32_zeros(elements, &Device::Cpu)?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| -> Result<()> {
            for step_index in 1..=2 {
                let params = Params { step: step_index, ..PARAMS };
                step(Weights::Master { master: &master, param: &narrow }, &bytes, &x[1], params)?;
                let random = Weights::Stochastic { param: &stochastic, seed, tensor: 1 };
                step(random, &plain, &x[1], params)?;
            }
            Ok(())
        })?;
        let (first, second) = bytes.to_f32()?;
        [master, narrow, stochastic, first, second].iter().map(bits).collect()
    };
    let one = run(1, 1)?;
    assert!(one == run(3, 1)?);
    let other_seed = run(1, 2)?;
    assert!(one[0] == other_seed[0] && one[2] != other_seed[2]);
    Ok(())
}

/// Pulls weights from 0 to targets through noise, and returns how far the moments of 8 bits lead
/// away from those of f32, relative to how far they went.
#[test]
fn moments_of_8_bits_track_those_of_f32_on_a_quadratic() -> Result<()> {
    let elements = 4096;
    let x = check::random(&[&[elements], &[50, elements]], DType::F32)?;
    let (target, noise) = (&x[0], &x[1]);
    let (plain, coded) = (target.zeros_like()?, target.zeros_like()?);
    let f32_moments = Moments::f32_zeros(elements, &Device::Cpu)?;
    let bytes = Moments::blockwise8_zeros(elements, &Device::Cpu)?;
    let norm = |t: &Tensor| sum_of_squares(t).map(f64::sqrt);
    for step_index in 1..=50 {
        let noise = (noise.get(step_index as usize - 1)? * 0.1)?;
        let params = Params { step: step_index, grad_scale: 1.0, weight_decay: 0.0, ..PARAMS };
        for (weight, moments) in [(&plain, &f32_moments), (&coded, &bytes)] {
            let grad = ((weight - target)? + &noise)?;
            step(Weights::F32(weight), moments, &grad, params)?;
        }
    }
    let apart = norm(&(&plain - &coded)?)? / norm(&plain)?;
    assert!(apart < 0.02, "weights are {apart} apart");
    let ((m, v), (m8, v8)) = (f32_moments.to_f32()?, bytes.to_f32()?);
    for (exact, coded, bound) in [(m, m8, 0.1), (v, v8, 0.1)] {
        let apart = norm(&(&exact - coded)?)? / norm(&exact)?;
        assert!(apart < bound, "moments are {apart} apart");
    }
    Ok(())
}

/// Weights near 1 move by 1e-4 a step, a fortieth of a bf16's unit in the last place: rounded to
/// the nearest they never move, rounded at random they reach their targets.
#[test]
fn stochastic_rounding_learns_what_plain_rounding_cannot() -> Result<()> {
    let elements = 2048;
    let target = (check::random(&[&[elements]], DType::F32)?.remove(0) * 0.02)?;
    let target = (target + 1.03)?;
    let start = Tensor::ones(elements, DType::BF16, &Device::Cpu)?;
    let loss = |weight: &Tensor| -> Result<f64> {
        let apart = (weight.to_dtype(DType::F32)? - &target)?;
        Ok(sum_of_squares(&apart)? / elements as f64)
    };
    let (nearest, stochastic) = (start.copy()?, start.copy()?);
    let moments = [(); 2].map(|()| Moments::f32_zeros(elements, &Device::Cpu));
    let [nearest_moments, stochastic_moments] = moments;
    let (nearest_moments, stochastic_moments) = (nearest_moments?, stochastic_moments?);
    for step_index in 1..=600 {
        let params =
            Params { lr: 1e-4, step: step_index, grad_scale: 1.0, weight_decay: 0.0, ..PARAMS };
        let grad = |weight: &Tensor| weight.to_dtype(DType::F32)? - &target;
        let wide = nearest.to_dtype(DType::F32)?;
        step(Weights::F32(&wide), &nearest_moments, &grad(&nearest)?, params)?;
        nearest.slice_set(&wide.to_dtype(DType::BF16)?, 0, 0)?;
        let weights = Weights::Stochastic { param: &stochastic, seed: 3, tensor: 0 };
        step(weights, &stochastic_moments, &grad(&stochastic)?, params)?;
    }
    let (start, nearest, stochastic) = (loss(&start)?, loss(&nearest)?, loss(&stochastic)?);
    assert!(nearest == start, "plain rounding went from {start} to {nearest}");
    assert!(stochastic < start / 20.0, "from {start} to {stochastic}");
    Ok(())
}

#[test]
fn the_norm_is_right_and_the_same_on_any_thread_count() -> Result<()> {
    let wide = check::random(&[&[TASK * 3 + 5]], DType::F64)?.remove(0);
    for dtype in [DType::F32, DType::BF16] {
        let x = wide.to_dtype(dtype)?;
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("a pool").install(|| sum_of_squares(&x))
        };
        let one = on(1)?;
        assert_eq!(one.to_bits(), on(4)?.to_bits());
        let expected = sum_of_squares(&x.to_dtype(DType::F64)?)?;
        assert!(expected > 1000.0 && (one - expected).abs() < 1e-12 * expected);
    }
    Ok(())
}

#[test]
fn a_bf16_of_the_pass_is_that_of_half() -> Result<()> {
    let x = check::random(&[&[300]], DType::F32)?.remove(0);
    let param = Tensor::zeros(300, DType::BF16, &Device::Cpu)?;
    let moments = Moments::f32_zeros(300, &Device::Cpu)?;
    step(Weights::Master { master: &x, param: &param }, &moments, &x.copy()?, PARAMS)?;
    let expected: Vec<bf16> = x.to_vec1::<f32>()?.into_iter().map(bf16::from_f32).collect();
    assert_eq!(param.to_vec1::<bf16>()?, expected);
    Ok(())
}
