//! The optimizer on both sides: the same bits.

use candle_core::{DType, Device, Tensor};
use chandler_kernels::adamw::{self, Clip, Halt, Moments, Params, Step, Weights};

use crate::support::{DTYPES, gpu, noise};

const PARAMS: Params = Params {
    lr: 1e-2,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    step: 1,
    grad_scale: 0.7,
};

/// What three steps make of a weight of each kind, with moments of each kind.
fn trained(device: &Device, kind: usize, narrow: bool, grad_dtype: DType) -> Vec<Tensor> {
    let there = |tensor: Tensor| tensor.to_device(device).unwrap();
    // More than a chunk of the table, and no whole block of moments.
    let sizes = [(3, 5), (41, 211)];
    let master: Vec<Tensor> = sizes.map(|size| there(noise(size, 1, DType::F32))).into();
    let param: Vec<Tensor> = sizes.map(|size| there(noise(size, 2, DType::BF16))).into();
    let moments: Vec<Moments> = master
        .iter()
        .map(|of| {
            if narrow {
                Moments::blockwise8_zeros(of.elem_count(), device).unwrap()
            } else {
                Moments::f32_zeros(of.shape(), device).unwrap()
            }
        })
        .collect();
    for step in 1..=3 {
        let grad: Vec<Tensor> = sizes.map(|size| there(noise(size, 10 + step, grad_dtype))).into();
        let steps: Vec<Step> = (0..2)
            .map(|i| Step {
                weights: match kind {
                    0 => Weights::F32(&master[i]),
                    1 => Weights::Master { master: &master[i], param: &param[i] },
                    _ => Weights::Stochastic { param: &param[i], seed: 7, tensor: i as u64 },
                },
                moments: &moments[i],
                grad: &grad[i],
                // The first is a bias, as it were.
                params: Params {
                    step,
                    weight_decay: if i == 0 { 0.0 } else { PARAMS.weight_decay },
                    ..PARAMS
                },
                clip: None,
            })
            .collect();
        adamw::step_all(&steps).unwrap();
    }
    let of = |moments: &Moments| {
        let (first, second) = moments.to_f32().unwrap();
        [first, second]
    };
    master.iter().chain(&param).cloned().chain(moments.iter().flat_map(of)).collect()
}

#[test]
fn moves_weights_to_the_same_bits() {
    let Some((_alone, gpu)) = gpu() else { return };
    for grad_dtype in DTYPES {
        for kind in 0..3 {
            for narrow in [false, true] {
                let expected = trained(&Device::Cpu, kind, narrow, grad_dtype);
                let found = trained(&gpu, kind, narrow, grad_dtype);
                for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let bits = |t: &Tensor| -> Vec<f32> {
                        let t = t.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
                        t.flatten_all().unwrap().to_vec1().unwrap()
                    };
                    assert_eq!(
                        bits(found),
                        bits(expected),
                        "{kind} {narrow} {grad_dtype:?} {index}"
                    );
                }
            }
        }
    }
}

#[test]
fn sums_squares_of_all_gradients() {
    let Some((_alone, gpu)) = gpu() else { return };
    let all = [noise((3, 7), 1, DType::F32), noise(9000, 2, DType::BF16), noise(1, 3, DType::F32)];
    let expected = adamw::sum_of_all_squares(&all.each_ref()).unwrap();
    let there = all.map(|tensor| tensor.to_device(&gpu).unwrap());
    let found = adamw::sum_of_all_squares(&there.each_ref()).unwrap();
    assert!((found / expected - 1.0).abs() < 1e-12, "{found} {expected}");
    assert_eq!(found, adamw::sum_of_all_squares(&there.each_ref()).unwrap());
}

/// A weight that begins as ones, and along what it is moved.
struct OneWeight {
    weight: Tensor,
    moments: Moments,
    gradient: Tensor,
}

impl OneWeight {
    fn new(device: &Device) -> Self {
        Self {
            weight: Tensor::ones(300, DType::F32, device).unwrap(),
            moments: Moments::f32_zeros(300, device).unwrap(),
            gradient: (noise(300, 1, DType::F32) * 3.0).unwrap().to_device(device).unwrap(),
        }
    }

    fn step(&self, grad_scale: f64, clip: Option<&Clip>) {
        let step = Step {
            weights: Weights::F32(&self.weight),
            moments: &self.moments,
            grad: &self.gradient,
            params: Params { grad_scale, ..PARAMS },
            clip,
        };
        adamw::step_all(&[step]).unwrap();
    }

    fn bits(&self) -> Vec<f32> {
        self.weight.to_vec1().unwrap()
    }
}

#[test]
fn clips_without_being_waited_for() {
    let Some((_alone, gpu)) = gpu() else { return };
    let losses = [[7.0, 1.0], [3.0, 0.0]].map(|found| Tensor::new(&found, &gpu).unwrap());
    for max_norm in [0.25, 1e6, 0.0] {
        let (waited, not) = (OneWeight::new(&gpu), OneWeight::new(&gpu));
        let halt = Halt::new(&gpu).unwrap().unwrap();
        let clip = Clip::new(&[&not.gradient], &losses.each_ref(), max_norm, &halt);
        let clip = clip.unwrap().unwrap();
        not.step(7.0, Some(&clip));
        let norm = adamw::sum_of_all_squares(&[&waited.gradient]).unwrap().sqrt();
        assert_eq!(clip.norm().unwrap(), norm);
        let scale = if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        waited.step(scale, None);
        assert_eq!(not.bits(), waited.bits(), "{max_norm}");
        assert_ne!(not.bits(), OneWeight::new(&gpu).bits());
    }
}

/// The norm is that of the moment when it was asked for, and many may be on their way.
#[test]
fn a_norm_is_read_later() {
    let Some((_alone, gpu)) = gpu() else { return };
    let halt = Halt::new(&gpu).unwrap().unwrap();
    let gradient = Tensor::ones(16, DType::F32, &gpu).unwrap();
    let clips: Vec<Clip> = (0..200)
        .map(|_| {
            let clip = Clip::new(&[&gradient], &[], 1.0, &halt).unwrap().unwrap();
            gradient.slice_set(&(&gradient + 1.0).unwrap(), 0, 0).unwrap();
            clip
        })
        .collect();
    for (index, clip) in clips.iter().enumerate() {
        assert_eq!(clip.norm().unwrap(), 4.0 * (index + 1) as f64);
    }
}

#[test]
fn moves_nothing_from_a_number_on_that_is_none() {
    let Some((_alone, gpu)) = gpu() else { return };
    let no_number = Tensor::new(&[1f32, f32::NAN], &gpu).unwrap();
    let bad = Tensor::new(&[f64::NAN, 2.0], &gpu).unwrap();
    let good = Tensor::new(&[1.0, 2.0], &gpu).unwrap();
    for (gradient_is_bad, loss) in [(true, &good), (false, &bad)] {
        let weight = OneWeight::new(&gpu);
        let halt = Halt::new(&gpu).unwrap().unwrap();
        let gradient = if gradient_is_bad { &no_number } else { &weight.gradient };
        let clip = Clip::new(&[gradient], &[loss], 1.0, &halt).unwrap().unwrap();
        assert_eq!(clip.norm().unwrap().is_nan(), gradient_is_bad);
        weight.step(1.0, Some(&clip));
        // The next step is a good one, but of a run that has ended.
        let clip = Clip::new(&[&weight.gradient], &[&good], 1.0, &halt).unwrap().unwrap();
        weight.step(1.0, Some(&clip));
        assert_eq!(weight.bits(), OneWeight::new(&gpu).bits());
    }
}

#[test]
fn the_cpu_is_clipped_by_numbers() {
    assert!(Halt::new(&Device::Cpu).unwrap().is_none());
    let Some((_alone, gpu)) = gpu() else { return };
    let (there, here) = (OneWeight::new(&gpu), OneWeight::new(&Device::Cpu));
    let halt = Halt::new(&gpu).unwrap().unwrap();
    assert!(Clip::new(&[&here.gradient], &[], 1.0, &halt).unwrap().is_none());
    let clip = Clip::new(&[&there.gradient], &[], 1.0, &halt).unwrap().unwrap();
    let (weights, moments) = (Weights::F32(&here.weight), &here.moments);
    let (grad, params) = (&here.gradient, PARAMS);
    let step = Step { weights, moments, grad, params, clip: Some(&clip) };
    assert!(adamw::step_all(&[step]).is_err());
}

/// A step of tensors of every kind, and how far it has moved each of them.
fn moved(device: &Device, narrow: bool) -> Vec<[f64; 2]> {
    let there = |tensor: Tensor| tensor.to_device(device).unwrap();
    let sizes = [5, 300, 8192, 20_001];
    let master = sizes.map(|size| there(noise(size, 1, DType::F32)));
    let param = sizes.map(|size| there(noise(size, 2, DType::BF16)));
    let grad = sizes.map(|size| there(noise(size, 3, DType::F32)));
    let moments = sizes.map(|size| {
        if narrow {
            Moments::blockwise8_zeros(size, device).unwrap()
        } else {
            Moments::f32_zeros(size, device).unwrap()
        }
    });
    let steps: Vec<Step> = (0..4)
        .map(|i| Step {
            weights: match i {
                0 => Weights::F32(&master[i]),
                3 => Weights::Master { master: &master[i], param: &param[i] },
                _ => Weights::Stochastic { param: &param[i], seed: 7, tensor: i as u64 },
            },
            moments: &moments[i],
            grad: &grad[i],
            params: Params { weight_decay: if i == 1 { 0.0 } else { 0.1 }, ..PARAMS },
            clip: None,
        })
        .collect();
    adamw::step_all(&steps).unwrap();
    let moved = adamw::moved_all(&steps).unwrap();
    moved.into_iter().flatten().map(|one| [one.update_squares, one.weight_squares]).collect()
}

#[test]
fn tells_how_far_each_tensor_has_moved() {
    let Some((_alone, gpu)) = gpu() else { return };
    for narrow in [false, true] {
        let (found, expected) = (moved(&gpu, narrow), moved(&Device::Cpu, narrow));
        assert_eq!((found.len(), expected.len()), (4, 4));
        for (found, expected) in found.as_flattened().iter().zip(expected.as_flattened()) {
            assert!(*expected > 0.0 && (found / expected - 1.0).abs() < 1e-9, "{found} {expected}");
        }
    }
}

#[test]
fn sums_squares_of_each_gradient() {
    let Some((_alone, gpu)) = gpu() else { return };
    let sizes = [(1, DType::F32), (20_001, DType::BF16), (300, DType::F32), (8192, DType::F32)];
    let here = sizes.map(|(size, dtype)| noise(size, 1, dtype));
    let there = here.each_ref().map(|tensor| tensor.to_device(&gpu).unwrap());
    let expected = adamw::squares_of_each(&here.each_ref()).unwrap();
    for (found, expected) in adamw::squares_of_each(&there.each_ref()).unwrap().iter().zip(expected)
    {
        assert!((found - expected).abs() <= 1e-12 * expected, "{found} {expected}");
    }
}
