//! Matrix products on the CPU, for the three shapes of training: `x·Wᵀ`, `dy·W` and `dyᵀ·x`.
//!
//! Both operands are packed into panels, but for a long side beside a short one; tiles are computed
//! by a micro-kernel that the CPU's features choose, and sums are f32 from start to end whatever the
//! operands are.

mod blocking;
mod deep;
mod isa;
mod kernel;
mod operand;
mod output;
mod portable;
mod rehearse;
#[cfg(test)]
mod scalar;
mod serial;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_narrow;
#[cfg(target_arch = "x86_64")]
mod avx512_pack;
#[cfg(target_arch = "x86_64")]
mod avx512_short;
#[cfg(target_arch = "x86_64")]
mod narrow;
#[cfg(target_arch = "aarch64")]
mod neon;

pub(crate) use isa::vectors;
pub use isa::{Instructions, instructions};
pub(crate) use operand::Operand;
pub(crate) use output::{Output, Tiles};
pub(crate) use rehearse::rehearse;
pub(crate) use serial::{MOST_LANES, Serial, SerialKernel, Work};

use candle_core::DType;
#[cfg(any(target_arch = "x86_64", test))]
use half::bf16;
use isa::Isa;

/// The kernel of CPUs other than x86-64, where their instructions may be used.
#[cfg(target_arch = "aarch64")]
type Native = neon::Neon;
/// They have the one that every CPU has.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type Native = portable::Portable;

/// An element that has kernels.
pub(crate) trait Element: Copy + Send + Sync {
    /// `out (+)= left · rightᵀ` into rows that are `row_stride` apart.
    fn multiply<O: Output>(
        left: &Operand<Self>,
        right: &Operand<Self>,
        out: &mut [O],
        row_stride: usize,
        add: bool,
    );
}

/// Whether kernels may use `vdpbf16ps` here.
#[cfg(target_arch = "x86_64")]
pub(crate) fn multiplies_bf16_pairs() -> bool {
    isa::of_bf16() >= Isa::Avx512Bf16 && Isa::Avx512Bf16.is_there()
}

/// Bytes of an element of a packed operand: kernels that have no bf16 instructions widen it.
pub(crate) fn packed_element_bytes(dtype: DType) -> usize {
    match (dtype, isa::of_bf16()) {
        (DType::BF16, Isa::Portable | Isa::Neon | Isa::Avx2 | Isa::Avx512) => size_of::<f32>(),
        _ => dtype.size_in_bytes(),
    }
}

/// Whether kernels may use AMX tiles for bf16.
pub(crate) fn has_tiles() -> bool {
    isa::of_bf16() == Isa::AmxBf16
}

/// Whether it takes less time to compute a product of `dtype` again than to store it and read it.
pub(crate) fn outruns_memory(dtype: DType) -> bool {
    dtype == DType::BF16 && has_tiles()
}

/// Bytes of the buffers of products of `dtype` on this thread's pool, where they are the same for every
/// product without a short side; each is a size `[m, n, k]` and whether both sides lie by the rows that
/// are summed over.
#[cfg(target_arch = "x86_64")]
pub(crate) fn constant_buffer_bytes(
    dtype: DType,
    products: &[([usize; 3], bool)],
) -> Option<usize> {
    let takes = || products.iter().any(|(size, sums)| !narrow::has_short_side(*size, *sums));
    let bytes = || amx::buffer_bytes(rayon::current_num_threads());
    outruns_memory(dtype).then(|| if takes() { bytes() } else { 0 })
}

/// There are no such products.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn constant_buffer_bytes(_: DType, _: &[([usize; 3], bool)]) -> Option<usize> {
    None
}

/// Whether kernels may use AVX2 and FMA here.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx2() -> bool {
    isa::of_f32() >= Isa::Avx2
}

#[cfg(target_arch = "x86_64")]
impl Element for f32 {
    fn multiply<O: Output>(
        left: &Operand<f32>,
        right: &Operand<f32>,
        out: &mut [O],
        row_stride: usize,
        add: bool,
    ) {
        let multiply = match isa::of_f32() {
            Isa::Portable | Isa::Neon => blocking::multiply::<_, portable::Portable, _>,
            Isa::Avx2 => blocking::multiply::<_, avx2::Avx2, _>,
            _ => blocking::multiply::<_, avx512::Avx512F32, _>,
        };
        multiply(left, right, out, row_stride, add);
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
    ) {
        if multiplies_bf16_pairs() && narrow::multiply(left, right, out, row_stride, add) {
            return;
        }
        if deep::is_deep::<O>(left.depth) {
            return deep::multiply(left, right, out, row_stride, add);
        }
        let multiply = match isa::of_bf16() {
            Isa::Portable | Isa::Neon => blocking::multiply::<_, portable::Portable, _>,
            Isa::Avx2 => blocking::multiply::<_, avx2::Avx2, _>,
            Isa::Avx512 => blocking::multiply::<_, avx512::Avx512Widened, _>,
            Isa::Avx512Bf16 => blocking::multiply::<_, avx512::Avx512Bf16, _>,
            Isa::AmxBf16 => amx::multiply::<amx::Tmm, _>,
        };
        multiply(left, right, out, row_stride, add);
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl<T: Copy + Send + Sync> Element for T
where
    Native: kernel::Kernel<T>,
    portable::Portable: kernel::Kernel<T>,
{
    fn multiply<O: Output>(
        left: &Operand<T>,
        right: &Operand<T>,
        out: &mut [O],
        row_stride: usize,
        add: bool,
    ) {
        if deep::is_deep::<O>(left.depth) {
            return deep::multiply(left, right, out, row_stride, add);
        }
        let multiply = match isa::of_f32() {
            Isa::Portable => blocking::multiply::<_, portable::Portable, _>,
            _ => blocking::multiply::<_, Native, _>,
        };
        multiply(left, right, out, row_stride, add);
    }
}

#[cfg(test)]
mod tests {
    use super::kernel::Kernel;
    use super::scalar::{ScalarBf16, ScalarF32};
    use super::*;
    use proptest::prelude::*;
    #[cfg(target_arch = "x86_64")]
    use std::io::Write;

    /// Values that depend on their place alone.
    pub(super) fn values(len: usize, salt: u64) -> Vec<f32> {
        let mix = |i: usize| {
            let x = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) ^ salt;
            x.wrapping_mul(0xd1b5_4a32_d192_ed03)
        };
        (0..len).map(|i| (mix(i) >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }

    /// A product of these elements into f32.
    type Multiply<T> = fn(&Operand<T>, &Operand<T>, &mut [f32], usize, bool);

    /// Every orientation of both sides, against sums in f64.
    fn check<T: Copy>(
        multiply: Multiply<T>,
        of: impl Fn(f32) -> T,
        wide: impl Fn(T) -> f64,
        [m, n, k]: [usize; 3],
    ) {
        let a: Vec<T> = values(m * k, 1).into_iter().map(&of).collect();
        let b: Vec<T> = values(n * k, 2).into_iter().map(&of).collect();
        let sides = |data, len| [Operand::rows(data, len, k), Operand::columns(data, len, k)];
        for left in sides(&a, m) {
            for right in sides(&b, n) {
                let at = |o: &Operand<T>, i, k| wide(o.data[i * o.stride + k * o.depth_stride]);
                for add in [false, true] {
                    let stride = n + 3;
                    let mut out = vec![0.5f32; m * stride];
                    multiply(&left, &right, &mut out, stride, add);
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

    /// What has no short side goes by the scalar kernel.
    #[cfg(target_arch = "x86_64")]
    fn narrow_or_scalar<O: Output>(
        left: &Operand<bf16>,
        right: &Operand<bf16>,
        out: &mut [O],
        row_stride: usize,
        add: bool,
    ) {
        if !narrow::multiply(left, right, out, row_stride, add) {
            blocking::multiply::<bf16, ScalarBf16, O>(left, right, out, row_stride, add);
        }
    }

    fn check_f32<K: Kernel<f32>>(size: [usize; 3]) {
        check(blocking::multiply::<f32, K, f32>, |x| x, f64::from, size);
    }

    fn check_bf16<K: Kernel<bf16>>(size: [usize; 3]) {
        check(blocking::multiply::<bf16, K, f32>, bf16::from_f32, bf16::to_f64, size);
    }

    /// The model of the tiles, and the CPU's own; where it has none, what they are compiled to, one
    /// trap an instruction.
    #[cfg(target_arch = "x86_64")]
    fn check_tiles(size: [usize; 3]) {
        check_amx::<amx::Model>(size);
        if can_test(Isa::AmxBf16) {
            check_amx::<amx::Tmm>(size);
        }
        #[cfg(target_os = "linux")]
        if amx::Trapped::is_of_use() {
            check_amx::<amx::Trapped>(size);
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn check_amx<M: amx::Machine>(size: [usize; 3]) {
        check(amx::multiply::<M, f32>, bf16::from_f32, bf16::to_f64, size);
    }

    /// Whether the CPU has the instructions; says so where it lacks them.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn can_test(isa: Isa) -> bool {
        static MISSING: std::sync::Mutex<Vec<Isa>> = std::sync::Mutex::new(Vec::new());
        let there = isa.is_there();
        let mut missing = MISSING.lock().expect("no test fails while it looks");
        if !there && !missing.contains(&isa) {
            missing.push(isa);
            // Not by `eprintln!`, which the test harness keeps to itself.
            let line = format!("SKIPPED: no {isa:?} here, so its kernel is not tested on a CPU\n");
            std::io::stderr().write_all(line.as_bytes()).expect("standard error is open");
        }
        there
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn every_kernel_is_right_on_ragged_shapes(m in 1usize..40, n in 1usize..70, k in 0usize..50) {
            let size = [m, n, k];
            check_f32::<ScalarF32>(size);
            check_bf16::<ScalarBf16>(size);
            check_f32::<portable::Portable>(size);
            check_bf16::<portable::Portable>(size);
            #[cfg(target_arch = "aarch64")]
            {
                check_f32::<neon::Neon>(size);
                check_bf16::<neon::Neon>(size);
            }
            #[cfg(target_arch = "x86_64")]
            {
                if can_test(Isa::Avx2) {
                    check_f32::<avx2::Avx2>(size);
                    check_bf16::<avx2::Avx2>(size);
                }
                if can_test(Isa::Avx512) {
                    check_f32::<avx512::Avx512F32>(size);
                    check_f32::<avx512_short::ShortF32>(size);
                    check_bf16::<avx512::Avx512Widened>(size);
                }
                if can_test(Isa::Avx512Bf16) {
                    check_bf16::<avx512::Avx512Bf16>(size);
                    check_bf16::<avx512_short::ShortBf16>(size);
                }
            }
        }

        #[test]
        #[cfg(target_arch = "x86_64")]
        fn narrow_products_are_right(short in 1usize..18, long in 1usize..150, depth in 0usize..150) {
            if can_test(Isa::Avx512Bf16) {
                for size in [[long, short, depth], [short, long, depth], [long, depth, short]] {
                    check(narrow_or_scalar, bf16::from_f32, bf16::to_f64, size);
                }
            }
        }

        #[test]
        #[cfg(target_arch = "x86_64")]
        fn tiles_are_right_on_ragged_shapes(m in 1usize..80, n in 1usize..230, k in 0usize..420) {
            let size = [m, n, k];
            check_tiles(size);
        }
    }

    /// Longer than a task, or than what is made or summed at a time.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn narrow_products_are_right_past_every_cut() {
        if !can_test(Isa::Avx512Bf16) {
            return;
        }
        for size in [[130, 1100, 9], [9, 70, 333], [70, 9, 333], [130, 9, 40]] {
            check(narrow_or_scalar, bf16::from_f32, bf16::to_f64, size);
        }
        // Rounded, and added to what was.
        let of = |values: Vec<f32>| values.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
        let (m, n, k) = (75, 601, 8);
        let (a, b) = (of(values(m * k, 1)), of(values(n * k, 2)));
        let mut out = vec![bf16::from_f32(0.5); m * n];
        let (left, right) = (Operand::rows(&a, m, k), Operand::columns(&b, n, k));
        narrow_or_scalar(&left, &right, &mut out, n, true);
        for (i, out) in out.iter().enumerate() {
            let of = |d: usize| a[i / n * k + d].to_f64() * b[d * n + i % n].to_f64();
            let sum = 0.5 + (0..k).map(of).sum::<f64>();
            assert!((out.to_f64() - sum).abs() <= sum.abs() / 256.0 + 1e-6, "{i}: {out} {sum}");
        }
    }

    /// More rows, depth and columns than are packed or made by a task at a time, one by one.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn tiles_are_right_past_every_cut() {
        for size in [[2100, 40, 33], [33, 40, 4200], [40, 900, 70], [1100, 400, 40]] {
            check_tiles(size);
        }
    }

    /// Rows that are no whole panel after tasks of many, deeper than a thread packs of those, into
    /// sums that are rounded.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn tiles_are_right_where_many_deep_rows_end_in_a_part_of_a_panel() {
        deep_rows::<amx::Model>();
        if can_test(Isa::AmxBf16) {
            deep_rows::<amx::Tmm>();
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn deep_rows<M: amx::Machine>() {
        let (m, n, k) = (2010, 33, 2048);
        let of = |values: Vec<f32>| values.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
        let (a, b) = (of(values(m * k, 7)), of(values(n * k, 8)));
        let mut out = vec![bf16::NAN; m * n];
        let (left, right) = (Operand::rows(&a, m, k), Operand::rows(&b, n, k));
        amx::multiply::<M, bf16>(&left, &right, &mut out, n, false);
        for (i, j) in (0..m).flat_map(|i| [(i, i % n), (i, 32)]) {
            let sum: f64 = (0..k).map(|d| a[i * k + d].to_f64() * b[j * k + d].to_f64()).sum();
            let error = (out[i * n + j].to_f64() - sum).abs();
            assert!(error <= sum.abs() / 256.0 + 1e-3, "{i},{j}: {error}");
        }
    }

    /// Sums that go on in another slice, chunk or task have the bits of those that do not.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn tiles_give_the_same_bits_on_any_thread_count_and_in_any_part_of_a_product() {
        let (m, n, k) = (600, 300, 700);
        let of = |values: Vec<f32>| values.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
        let (a, b) = (of(values(m * k, 5)), of(values(n * k, 6)));
        let run = |threads, rows: usize| {
            let mut out = vec![0f32; rows * n];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let (left, right) = (Operand::rows(&a[..rows * k], rows, k), Operand::rows(&b, n, k));
            pool.expect("a pool").install(|| {
                amx::multiply::<amx::Model, f32>(&left, &right, &mut out, n, false);
            });
            out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let all = run(1, m);
        assert!(all == run(3, m));
        assert!(all[..70 * n] == run(3, 70));
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
            pool.expect("a pool").install(|| bf16::multiply(&left, &right, &mut out, n, false));
            out
        };
        let one = run(1);
        let bits = |out: &[f32]| out.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(&one) == bits(&run(3)));
        for (i, j) in [(0, 0), (2047, 1023), (2048, 1024), (2099, 1099), (1000, 777), (191, 256)] {
            let sum: f64 = (0..k).map(|d| a[i * k + d].to_f64() * b[j * k + d].to_f64()).sum();
            assert!((f64::from(one[i * n + j]) - sum).abs() < 1e-3, "{i},{j}");
        }
    }
}
