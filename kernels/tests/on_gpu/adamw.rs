//! The optimizer on both sides: the same bits.

use candle_core::{DType, Device, Tensor};
use chandler_kernels::adamw::{self, Moments, Params, Step, Weights};

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
