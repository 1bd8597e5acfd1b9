//! Matrix products on the CPU, for the three shapes of training: `x·Wᵀ`, `dy·W` and `dyᵀ·x`.
//!
//! Both operands are packed into panels, tiles are computed by a micro-kernel that the CPU's
//! features choose, and sums are f32 from start to end whatever the operands are. Where no kernel
//! fits the CPU, [`product`] says so and candle's own product (the `gemm` crate) takes over.

mod blocking;
mod kernel;
mod operand;
mod output;
#[cfg(test)]
mod scalar;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

pub(crate) use operand::Operand;
pub(crate) use output::Output;

use half::bf16;

/// An element that has kernels.
pub(crate) trait Element: Copy + Send + Sync {
    /// `out (+)= left · rightᵀ` into rows that are `row_stride` apart; false where the CPU has no
    /// kernel for it, and `out` is as it was.
    fn multiply<O: Output>(
        left: &Operand<Self>,
        right: &Operand<Self>,
        out: &mut [O],
        row_stride: usize,
        add: bool,
    ) -> bool;
}

/// The instructions that products use on this CPU, f32 and bf16.
pub fn instructions() -> [&'static str; 2] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f") && has!("avx512bw") && has!("avx512vl") {
            let bf16 = if has!("avx512bf16") { "avx512_bf16" } else { "avx512f" };
            return ["avx512f", bf16];
        }
        if has!("avx2") && has!("fma") {
            return ["avx2", "avx2"];
        }
    }
    ["portable", "portable"]
}

/// Whether products of f32 and of bf16 have kernels here.
pub(crate) fn is_fast() -> bool {
    instructions()[0] != "portable"
}

#[cfg(target_arch = "x86_64")]
impl Element for f32 {
    fn multiply<O: Output>(
        left: &Operand<f32>,
        right: &Operand<f32>,
        out: &mut [O],
        row_stride: usize,
        add: bool,
    ) -> bool {
        match instructions()[0] {
            "avx512f" => {
                blocking::multiply::<_, avx512::Avx512F32, _>(left, right, out, row_stride, add);
            }
            "avx2" => blocking::multiply::<_, avx2::Avx2, _>(left, right, out, row_stride, add),
            _ => return false,
        }
        true
    }
}

#[cfg(target_arch = "x86_64")]
impl Element for bf16 {
    fn multiply<O: Output>(
        left: &Operand<bf16>,
        right: &Operand<bf16>,
        out: &mut [O],
        row_stride: usize,
        add: bool,
    ) -> bool {
        match instructions()[1] {
            "avx512_bf16" => {
                blocking::multiply::<_, avx512::Avx512Bf16, _>(left, right, out, row_stride, add);
            }
            "avx512f" => {
                blocking::multiply::<_, avx512::Avx512Widened, _>(
                    left, right, out, row_stride, add,
                );
            }
            "avx2" => blocking::multiply::<_, avx2::Avx2, _>(left, right, out, row_stride, add),
            _ => return false,
        }
        true
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl<T: Copy + Send + Sync> Element for T {
    fn multiply<O: Output>(_: &Operand<T>, _: &Operand<T>, _: &mut [O], _: usize, _: bool) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::kernel::Kernel;
    use super::scalar::{ScalarBf16, ScalarF32};
    use super::*;
    use proptest::prelude::*;

    /// Values that depend on their place alone.
    fn values(len: usize, salt: u64) -> Vec<f32> {
        let mix = |i: usize| {
            let x = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) ^ salt;
            x.wrapping_mul(0xd1b5_4a32_d192_ed03)
        };
        (0..len).map(|i| (mix(i) >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }

    /// Every orientation of both sides, against sums in f64.
    fn check<T, K>(of: impl Fn(f32) -> T, wide: impl Fn(T) -> f64, m: usize, n: usize, k: usize)
    where
        T: Copy + Send + Sync,
        K: Kernel<T>,
    {
        let a: Vec<T> = values(m * k, 1).into_iter().map(&of).collect();
        let b: Vec<T> = values(n * k, 2).into_iter().map(&of).collect();
        let sides = |data, len| [Operand::rows(data, len, k), Operand::columns(data, len, k)];
        for left in sides(&a, m) {
            for right in sides(&b, n) {
                let at = |o: &Operand<T>, i, k| wide(o.data[i * o.stride + k * o.depth_stride]);
                for add in [false, true] {
                    let stride = n + 3;
                    let mut out = vec![0.5f32; m * stride];
                    blocking::multiply::<T, K, f32>(&left, &right, &mut out, stride, add);
                    for i in 0..m {
                        for j in 0..n {
                            let sum: f64 = (0..k).map(|k| at(&left, i, k) * at(&right, j, k)).sum();
                            let expected = if add { sum + 0.5 } else { sum };
                            let got = f64::from(out[i * stride + j]);
                            let bound = 1e-6 * (k as f64 + 1.0);
                            assert!((got - expected).abs() < bound, "{i},{j}: {got} {expected}");
                        }
                        assert!(out[i * stride + n..(i + 1) * stride].iter().all(|x| *x == 0.5));
                    }
                }
            }
        }
    }

    fn check_f32<K: Kernel<f32>>(m: usize, n: usize, k: usize) {
        check::<f32, K>(|x| x, f64::from, m, n, k);
    }

    fn check_bf16<K: Kernel<bf16>>(m: usize, n: usize, k: usize) {
        check::<bf16, K>(bf16::from_f32, bf16::to_f64, m, n, k);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn every_kernel_is_right_on_ragged_shapes(m in 1usize..40, n in 1usize..70, k in 0usize..50) {
            check_f32::<ScalarF32>(m, n, k);
            check_bf16::<ScalarBf16>(m, n, k);
            #[cfg(target_arch = "x86_64")]
            {
                use std::arch::is_x86_feature_detected as has;
                if has!("avx2") && has!("fma") {
                    check_f32::<avx2::Avx2>(m, n, k);
                    check_bf16::<avx2::Avx2>(m, n, k);
                }
                if has!("avx512f") && has!("avx512bw") && has!("avx512vl") {
                    check_f32::<avx512::Avx512F32>(m, n, k);
                    check_bf16::<avx512::Avx512Widened>(m, n, k);
                }
                if has!("avx512bf16") {
                    check_bf16::<avx512::Avx512Bf16>(m, n, k);
                }
            }
        }
    }

    /// A product that spans several super-blocks and tiles in each direction.
    #[test]
    fn large_products_are_right_in_sampled_places_and_the_same_on_any_thread_count() {
        let (m, n, k) = (2100, 1100, 4200);
        let of = |values: Vec<f32>| values.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
        let (a, b) = (of(values(m * k, 3)), of(values(n * k, 4)));
        let run = |threads| {
            let mut out = vec![0f32; m * n];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let (left, right) = (Operand::rows(&a, m, k), Operand::rows(&b, n, k));
            let done =
                pool.expect("a pool").install(|| bf16::multiply(&left, &right, &mut out, n, false));
            done.then_some(out)
        };
        let Some(one) = run(1) else { return eprintln!("no kernel for this CPU: skipped") };
        let bits = |out: &[f32]| out.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(&one) == bits(&run(3).expect("the same CPU")));
        for (i, j) in [(0, 0), (2047, 1023), (2048, 1024), (2099, 1099), (1000, 777), (191, 256)] {
            let sum: f64 = (0..k).map(|d| a[i * k + d].to_f64() * b[j * k + d].to_f64()).sum();
            assert!((f64::from(one[i * n + j]) - sum).abs() < 1e-3, "{i},{j}");
        }
    }
}
