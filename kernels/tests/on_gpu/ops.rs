//! Each op on both sides.

use candle_core::{DType, Device, Result, Tensor};
use chandler_kernels::activation::{self, Activation};
use chandler_kernels::decode_attention::{self, Place, Places};
use chandler_kernels::logits::most_probable_of_rows;
use chandler_kernels::{
    attention, elementwise, embedding, gemv, linear, linear_cross_entropy, rms_norm, rope,
};

use crate::support::{DTYPES, check_close, gpu, noise, tolerance};

/// Runs `op` on the CPU and on the GPU over the same tensors, and holds every output of the one
/// against that of the other.
#[track_caller]
fn check(
    gpu: &Device,
    inputs: &[Tensor],
    tolerance: f32,
    op: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
) {
    let expected = op(inputs).unwrap();
    let there: Vec<Tensor> = inputs.iter().map(|t| t.to_device(gpu).unwrap()).collect();
    let found = op(&there).unwrap();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert!(found.device().is_cuda());
        check_close(found, expected, tolerance);
    }
}

#[test]
fn products() {
    let Some((_alone, gpu)) = gpu() else { return };
    for dtype in DTYPES {
        let inputs = [noise((5, 7), 1, dtype), noise((3, 7), 2, dtype), noise((5, 3), 3, dtype)];
        check(&gpu, &inputs, tolerance(dtype), |t| {
            let (x, w, dy) = (&t[0], &t[1], &t[2]);
            let sums = noise((3, 7), 4, DType::F32).to_device(x.device())?;
            let (y, dx) = (dy.copy()?, x.copy()?);
            linear::add_weight_gradient(&sums, x, dy)?;
            linear::add_forward(&y, x, w)?;
            linear::add_backward_input(&dx, w, dy)?;
            Ok(vec![
                linear::forward(x, w, None)?,
                linear::backward_input(w, dy)?,
                linear::backward_weight(x, dy)?,
                sums,
                y,
                dx,
            ])
        });
    }
}

#[test]
fn norms() {
    let Some((_alone, gpu)) = gpu() else { return };
    for dtype in DTYPES {
        for (rows, width) in [(1, 8), (37, 24), (70, 129)] {
            let [x, dy, around] = [1, 2, 3].map(|seed| noise((rows, width), seed, dtype));
            let inputs = [x, dy, around, noise(width, 4, dtype)];
            for unit_offset in [false, true] {
                let norm = rms_norm::Params { eps: 1e-6, unit_offset };
                check(&gpu, &inputs, tolerance(dtype), |t| {
                    let (x, dy, around, w) = (&t[0], &t[1], &t[2], &t[3]);
                    let (dx, dw) = rms_norm::backward(x, w, norm, dy, true)?;
                    let (alone, none) = rms_norm::backward(x, w, norm, dy, false)?;
                    assert!(none.is_none());
                    let (sum, again) = rms_norm::backward_add(x, w, norm, dy, around, true)?;
                    let y = rms_norm::forward(x, w, norm)?;
                    let [added, normed] = rms_norm::forward_add(x, around, w, norm)?;
                    Ok(vec![y, dx, dw.unwrap(), alone, sum, again.unwrap(), added, normed])
                });
            }
        }
    }
}

#[test]
fn activations() {
    let Some((_alone, gpu)) = gpu() else { return };
    for dtype in DTYPES {
        let inputs = [1, 2, 3].map(|seed| noise((7, 37), seed, dtype));
        for kind in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf] {
            check(&gpu, &inputs, tolerance(dtype), |t| {
                let (gate, up, dy) = (&t[0], &t[1], &t[2]);
                let (d_gate, d_up) = activation::backward(gate, up, kind, dy)?;
                let (again, d_gate_too, d_up_too) =
                    activation::backward_with_output(gate, up, kind, dy)?;
                let y = activation::forward(gate, up, kind)?;
                Ok(vec![y, d_gate, d_up, again, d_gate_too, d_up_too])
            });
        }
    }
}

#[test]
fn rotations() {
    let Some((_alone, gpu)) = gpu() else { return };
    let norm = rms_norm::Params { eps: 1e-6, unit_offset: false };
    for dtype in DTYPES {
        for (tokens, heads, head_dim) in [(1, 1, 8), (13, 3, 16), (300, 2, 6)] {
            let shape = (tokens, heads, head_dim);
            let angles = [1, 2].map(|seed| noise((tokens, head_dim / 2), seed, DType::F32));
            let [cos, sin] = angles;
            let (x, dy) = (noise(shape, 3, dtype), noise(shape, 4, dtype));
            let inputs = [x, dy, cos, sin, noise(head_dim, 5, dtype)];
            check(&gpu, &inputs, tolerance(dtype), |t| {
                let (x, dy, cos, sin, weight) = (&t[0], &t[1], &t[2], &t[3], &t[4]);
                let (d_raw, dw) = rope::backward_normed(x, weight, norm, cos, sin, dy, true)?;
                let (alone, none) = rope::backward_normed(x, weight, norm, cos, sin, dy, false)?;
                assert!(none.is_none());
                Ok(vec![
                    rope::forward(x, cos, sin)?,
                    rope::backward(dy, cos, sin)?,
                    rope::forward_normed(x, weight, norm, cos, sin)?,
                    d_raw,
                    dw.unwrap(),
                    alone,
                ])
            });
        }
    }
}

/// Heads of one projection of queries, keys and values are parts of its rows.
#[test]
fn rotations_of_parts_of_rows() {
    let Some((_alone, gpu)) = gpu() else { return };
    let [cos, sin] = [1, 2].map(|seed| noise((9, 4), seed, DType::F32));
    let inputs = [noise((9, 40), 3, DType::F32), cos, sin];
    check(&gpu, &inputs, tolerance(DType::F32), |t| {
        let keys = t[0].narrow(1, 8, 16)?.reshape((9, 2, 8))?;
        Ok(vec![rope::forward(&keys, &t[1], &t[2])?])
    });
}

#[test]
fn embeddings() {
    let Some((_alone, gpu)) = gpu() else { return };
    let ids = Tensor::new(&[3u32, 0, 3, 3, 6, 1, 0], &Device::Cpu).unwrap();
    for dtype in DTYPES {
        for sums in [DType::F32, dtype] {
            for (width, scale) in [(8, None), (300, Some(17.3))] {
                let (table, dy) = (noise((7, width), 1, dtype), noise((7, width), 2, dtype));
                let inputs = [table, dy, noise((7, width), 3, sums)];
                check(&gpu, &inputs, tolerance(dtype), |t| {
                    let d_table = t[2].copy()?;
                    embedding::add_gradient(&d_table, &ids, scale, &t[1], Some(1))?;
                    Ok(vec![embedding::forward(&t[0], &ids, scale)?, d_table])
                });
            }
        }
    }
    let table = noise((7, 8), 1, DType::F32).to_device(&gpu).unwrap();
    let stray = Tensor::new(&[7u32], &Device::Cpu).unwrap();
    assert!(embedding::forward(&table, &stray, None).is_err());
}

#[test]
fn losses() {
    let Some((_alone, gpu)) = gpu() else { return };
    let all: Vec<i64> = (0..11).map(|token| token * 5 % 23).collect();
    let mut some = all.clone();
    (some[2], some[3], some[10]) = (-100, -100, -100);
    for dtype in DTYPES {
        let inputs = [noise((11, 12), 1, dtype), noise((23, 12), 2, dtype)];
        for (targets, softcap) in [(&all, None), (&some, None), (&some, Some(2.0))] {
            check(&gpu, &inputs, tolerance(dtype), |t| {
                let (hidden, head) = (&t[0], &t[1]);
                let d_head = noise((23, 12), 3, DType::F32).to_device(hidden.device())?;
                let (score, d_hidden) = linear_cross_entropy::forward_backward(
                    hidden,
                    head,
                    targets,
                    softcap,
                    0.25,
                    Some(&d_head),
                )?;
                let alone = linear_cross_entropy::forward(hidden, head, targets, softcap)?;
                assert!((alone.loss_sum - score.loss_sum).abs() < 1e-5);
                assert_eq!(alone.num_correct, score.num_correct);
                let of_each = linear_cross_entropy::log_probs(hidden, head, targets, softcap)?;
                let mut numbers: Vec<f32> = of_each.iter().map(|x| *x as f32).collect();
                numbers.extend([score.loss_sum as f32, score.num_targets as f32]);
                let numbers = Tensor::new(numbers, hidden.device())?;
                Ok(vec![d_hidden, d_head, numbers])
            });
        }
    }
}

/// Heads that the kernels take, and some that candle's ops have to.
#[test]
fn attention_of_documents() {
    let Some((_alone, gpu)) = gpu() else { return };
    for (dtype, dim) in DTYPES.into_iter().flat_map(|dtype| [(dtype, 16), (dtype, 8), (dtype, 48)])
    {
        let (q, k) = (noise((9, 4, dim), 1, dtype), noise((9, 2, dim), 2, dtype));
        let inputs = [q, k, noise((9, 2, dim), 3, dtype), noise((9, 4, dim), 4, dtype)];
        for (softcap, window) in [(None, None), (Some(1.5), Some(3))] {
            let params = attention::Params { scale: 0.35, softcap, window };
            check(&gpu, &inputs, 2.0 * tolerance(dtype), |t| {
                let (q, k, v, dy) = (&t[0], &t[1], &t[2], &t[3]);
                let boundaries = [0, 5, 5, 9];
                let y = attention::forward(q, k, v, &boundaries, params)?;
                let [dq, dk, dv] = attention::backward(q, k, v, &boundaries, params, dy)?;
                let later = q.narrow(0, 6, 3)?;
                let from = attention::forward_from(&later, k, v, 6, params)?;
                Ok(vec![y, dq, dk, dv, from])
            });
        }
    }
}

/// Parts of tensors that are contiguous and begin where 16 bytes at a time cannot be read from.
#[test]
fn attention_of_parts() {
    let Some((_alone, gpu)) = gpu() else { return };
    let params = attention::Params { scale: 0.35, softcap: None, window: None };
    for dtype in DTYPES {
        let of = |heads, seed| noise((9, heads, 16), seed, dtype);
        let inputs = [of(4, 1), of(2, 2), of(2, 3), of(4, 4)];
        check(&gpu, &inputs, 2.0 * tolerance(dtype), |t| {
            let part = |t: &Tensor| {
                let flat = t.flatten_all()?;
                let longer = Tensor::cat(&[&flat.narrow(0, 0, 1)?, &flat], 0)?;
                longer.narrow(0, 1, flat.elem_count())?.reshape(t.dims())
            };
            let (q, k, v, dy) = (&part(&t[0])?, &part(&t[1])?, &part(&t[2])?, &part(&t[3])?);
            let (y, kept) = attention::forward_kept(q, k, v, &[0, 5, 9], params)?;
            let kept = kept.with_output(&part(&y)?, dy)?;
            let [dq, dk, dv] = attention::backward_kept(q, k, v, &[0, 5, 9], params, dy, &kept)?;
            Ok(vec![y, dq, dk, dv])
        });
    }
}

/// More than a tile of queries and keys, and keys that lie as a cache has them.
#[test]
fn attention_over_a_past() {
    let Some((_alone, gpu)) = gpu() else { return };
    let params = attention::Params { scale: 0.25, softcap: None, window: None };
    for dtype in DTYPES {
        let cache = noise((2, 150, 16), 2, dtype);
        let inputs = [noise((70, 4, 16), 1, dtype), cache, noise((2, 150, 16), 3, dtype)];
        check(&gpu, &inputs, 2.0 * tolerance(dtype), |t| {
            let (k, v) = (t[1].transpose(0, 1)?, t[2].transpose(0, 1)?);
            Ok(vec![attention::forward_from(&t[0], &k, &v, 80, params)?])
        });
    }
}

#[test]
fn decode_steps() {
    let Some((_alone, gpu)) = gpu() else { return };
    let places = [Place { row: 2, len: 150 }, Place { row: 0, len: 7 }];
    for (dtype, dim) in DTYPES.into_iter().flat_map(|dtype| [(dtype, 16), (dtype, 6)]) {
        let cache = (3, 2, 160, dim);
        let inputs = [
            noise((2, 4, dim), 1, dtype),
            noise(cache, 2, dtype),
            noise(cache, 3, dtype),
            noise((2, 2, dim), 4, dtype),
        ];
        for (softcap, window) in [(None, None), (Some(1.5), Some(140))] {
            let params = attention::Params { scale: 0.35, softcap, window };
            check(&gpu, &inputs, 2.0 * tolerance(dtype), |t| {
                let (keys, values) = (t[1].copy()?, t[2].copy()?);
                let places = Places::new(places.to_vec(), keys.device())?;
                decode_attention::store(&keys, &t[3], &places)?;
                decode_attention::store(&values, &t[3], &places)?;
                let y = decode_attention::forward(&t[0], &keys, &values, &places, params)?;
                Ok(vec![y, keys, values])
            });
        }
    }
}

#[test]
fn products_of_few_rows() {
    let Some((_alone, gpu)) = gpu() else { return };
    for dtype in DTYPES {
        for (rows, inputs, outputs) in [(1, 64, 40), (1, 2600, 9), (8, 33, 17), (11, 24, 9)] {
            let tensors = [
                noise((rows, inputs), 1, dtype),
                noise((outputs, inputs), 2, dtype),
                noise(outputs, 3, dtype),
                noise((rows, outputs), 4, dtype),
            ];
            check(&gpu, &tensors, 2.0 * tolerance(dtype), |t| {
                let (x, weight, bias) = (&t[0], &t[1], &t[2]);
                let layers =
                    [gemv::Layer { weight, bias: Some(bias) }, gemv::Layer { weight, bias: None }];
                let mut all = gemv::forward(x, &layers)?;
                all.push(gemv::forward_wide(x, weight)?);
                all.push(linear::forward(x, weight, Some(bias))?);
                all.push(linear::backward_bias(&t[3])?);
                all.push(elementwise::add(&t[3], &all[0])?);
                Ok(all)
            });
        }
    }
}

#[test]
fn logits_of_any_number_of_rows_are_not_rounded() {
    let Some((_alone, gpu)) = gpu() else { return };
    for rows in [3, 8, 9, 40] {
        let tensors = [noise((rows, 64), 1, DType::BF16), noise((50, 64), 2, DType::BF16)];
        check(&gpu, &tensors, 3e-6, |t| Ok(vec![gemv::forward_wide(&t[0], &t[1])?]));
    }
}

#[test]
fn the_most_probable_token() {
    let Some((_alone, gpu)) = gpu() else { return };
    for vocab in [700, 20_003] {
        let row = |seed| noise((1, vocab), seed, DType::F32);
        let none = Tensor::full(f32::NEG_INFINITY, (1, vocab), &Device::Cpu).unwrap();
        let logits = (Tensor::cat(&[row(1), row(2), none], 0).unwrap() * 9.0).unwrap();
        let expected = most_probable_of_rows(&logits).unwrap();
        let found = most_probable_of_rows(&logits.to_device(&gpu).unwrap()).unwrap();
        for ((found, logprob), (id, expected)) in found.into_iter().zip(expected) {
            assert_eq!(found, id);
            let near = (logprob - expected).abs() < 1e-5;
            assert!(near || expected.is_nan(), "{logprob} and {expected}");
        }
    }
}
