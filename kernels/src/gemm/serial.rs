//! The way to the micro-kernels for ops that do many small products inside of one task, in tile
//! layouts of their own, with other work between them.

use half::bf16;

use super::Operand;
use super::kernel::Kernel;

/// The most rows that a right panel has, whatever the kernel.
pub(crate) const MOST_LANES: usize = 32;

/// A micro-kernel that can also read its left side unpacked. Its products are made inside of
/// [`SerialKernel::ready`].
pub(crate) trait SerialKernel<T: Copy>: Kernel<T> {
    /// Units along the depth come in lots of so many; what is missing of the last is zero.
    const LOT: usize = 1;

    /// Units along a depth of so many elements.
    fn units(depth: usize) -> usize {
        depth.div_ceil(Self::DEPTH).next_multiple_of(Self::LOT)
    }

    /// Does `work` on this thread, with all that the products need set up.
    fn ready<R>(work: impl FnOnce() -> R) -> R {
        work()
    }

    /// Writes a left panel; [`Kernel::pack`] with `NR` for its width writes a right one.
    fn pack_left(operand: &Operand<T>, first: usize, depth: usize, panel: &mut [Self::Unit]) {
        Self::pack(operand, first, depth, Self::MR, panel);
    }

    /// `c[i · ldc + j] (+)= Σ_s Σ_k lines[s · stride + i · NR + k] · right[s][k][j]` for a whole
    /// `MR × NR` tile, where each of the `blocks` lots of lines is `NR` deep: left rows as they lie
    /// in memory, `NR` elements each, by right panels of that depth, one after the other.
    fn tile_of_lines(
        lines: &[T],
        blocks: usize,
        stride: usize,
        right: &[Self::Unit],
        c: &mut [f32],
        ldc: usize,
        add: bool,
    ) {
        let mut packed = [Self::Unit::default(); MOST_LANES * MOST_LANES];
        let packed = &mut packed[..Self::MR * Self::NR / Self::DEPTH];
        let depth = Self::NR / Self::DEPTH * Self::NR;
        for (block, right) in right.chunks_exact(depth).take(blocks).enumerate() {
            let lines = &lines[block * stride..][..Self::MR * Self::NR];
            Self::pack(&Operand::rows(lines, Self::MR, Self::NR), 0, 0, Self::MR, packed);
            Self::tile(packed, right, c, ldc, add || block > 0);
        }
    }

    /// `to [NR, dim] = from [dim, NR]ᵀ`.
    fn turn(from: &[f32], dim: usize, to: &mut [f32]) {
        for (lane, row) in to.chunks_exact_mut(dim).take(Self::NR).enumerate() {
            for (to, from) in row.iter_mut().zip(from.chunks_exact(Self::NR)) {
                *to = from[lane];
            }
        }
    }
}

/// What is to be done once the kernel is known.
pub(crate) trait Work<T: Copy> {
    /// Its result.
    type Done;

    /// Does it.
    fn with<K: SerialKernel<T>>(self) -> Self::Done;
}

/// An element whose kernels can be had.
pub(crate) trait Serial: Copy {
    /// Does `work` with the kernel for this CPU.
    fn with_kernel<W: Work<Self>>(work: W) -> W::Done;

    /// Does `work` with every kernel that this CPU can run.
    #[cfg(test)]
    fn with_each_kernel<W: Work<Self> + Copy>(work: W) -> Vec<W::Done>;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::isa::{self, Isa};
    use super::super::{amx, avx2::Avx2, avx512::Avx512Widened, avx512_short, portable::Portable};
    use super::{Serial, SerialKernel, Work, bf16};

    impl SerialKernel<f32> for Avx2 {}
    impl SerialKernel<bf16> for Avx2 {}
    impl SerialKernel<bf16> for Avx512Widened {}

    impl Serial for f32 {
        fn with_kernel<W: Work<f32>>(work: W) -> W::Done {
            match isa::of_f32() {
                Isa::Portable | Isa::Neon => work.with::<Portable>(),
                Isa::Avx2 => work.with::<Avx2>(),
                _ => work.with::<avx512_short::ShortF32>(),
            }
        }

        #[cfg(test)]
        fn with_each_kernel<W: Work<f32> + Copy>(work: W) -> Vec<W::Done> {
            let [avx2, avx512, _] = runs();
            let done = [
                Some(work.with::<Portable>()),
                avx2.then(|| work.with::<Avx2>()),
                avx512.then(|| work.with::<avx512_short::ShortF32>()),
            ];
            done.into_iter().flatten().collect()
        }
    }

    /// Whether the CPU runs kernels for AVX2, AVX-512 and AVX-512 BF16.
    #[cfg(test)]
    fn runs() -> [bool; 3] {
        use std::arch::is_x86_feature_detected as has;
        let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512vl");
        [has!("avx2") && has!("fma"), avx512, avx512 && has!("avx512bf16")]
    }

    impl Serial for bf16 {
        fn with_kernel<W: Work<bf16>>(work: W) -> W::Done {
            match isa::of_bf16() {
                Isa::Portable | Isa::Neon => work.with::<Portable>(),
                Isa::Avx2 => work.with::<Avx2>(),
                Isa::Avx512Bf16 => work.with::<avx512_short::ShortBf16>(),
                Isa::Avx512 => work.with::<Avx512Widened>(),
                Isa::AmxBf16 => work.with::<amx::AmxBf16>(),
            }
        }

        #[cfg(test)]
        fn with_each_kernel<W: Work<bf16> + Copy>(work: W) -> Vec<W::Done> {
            let [avx2, avx512, avx512_bf16] = runs();
            let done = [
                Some(work.with::<Portable>()),
                avx2.then(|| work.with::<Avx2>()),
                avx512.then(|| work.with::<Avx512Widened>()),
                avx512_bf16.then(|| work.with::<avx512_short::ShortBf16>()),
                amx::available().then(|| work.with::<amx::AmxBf16>()),
            ];
            done.into_iter().flatten().collect()
        }
    }
}

#[cfg(target_arch = "aarch64")]
impl SerialKernel<f32> for super::neon::Neon {}
#[cfg(target_arch = "aarch64")]
impl SerialKernel<bf16> for super::neon::Neon {}

#[cfg(not(target_arch = "x86_64"))]
mod others {
    use super::super::{Native, isa, portable::Portable};
    use super::{Serial, SerialKernel, Work};

    impl<T: Copy> Serial for T
    where
        Native: SerialKernel<T>,
        Portable: SerialKernel<T>,
    {
        fn with_kernel<W: Work<T>>(work: W) -> W::Done {
            match isa::of_f32() {
                isa::Isa::Portable => work.with::<Portable>(),
                _ => work.with::<Native>(),
            }
        }

        #[cfg(test)]
        fn with_each_kernel<W: Work<T> + Copy>(work: W) -> Vec<W::Done> {
            vec![work.with::<Portable>(), work.with::<Native>()]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Real;
    use crate::scratch::Scratch;

    fn values_in_order(len: usize) -> Vec<f32> {
        (0..len).map(|i| i as f32).collect()
    }

    /// Sums of products in f64 against both ways to read the left side.
    #[derive(Clone, Copy)]
    struct Check(usize);

    impl<T: Real> Work<T> for Check {
        type Done = ();

        fn with<K: SerialKernel<T>>(self) {
            let (blocks, stride) = (self.0, K::MR * K::NR + 8);
            let value = |i: usize| T::narrow(((i * 37 + 11) % 101) as f32 / 64.0 - 0.7);
            let lines: Vec<T> = (0..blocks * stride).map(value).collect();
            let depth = blocks * K::NR;
            let rows: Vec<T> = (0..K::NR * depth).map(|i| value(i * 3 + 5)).collect();
            let mut right = Scratch::<K::Unit>::new(depth / K::DEPTH * K::NR);
            K::pack(&Operand::rows(&rows, K::NR, depth), 0, 0, K::NR, &mut right);
            let ldc = K::NR + 3;
            let (from, dim) = (values_in_order(K::NR * 21), 21);
            let mut turned = vec![0.0; K::NR * dim];
            K::turn(&from, dim, &mut turned);
            for (i, lane) in (0..dim).flat_map(|i| (0..K::NR).map(move |lane| (i, lane))) {
                assert!(turned[lane * dim + i] == from[i * K::NR + lane]);
            }
            for add in [false, true] {
                let mut c = vec![0.25f32; K::MR * ldc];
                K::ready(|| K::tile_of_lines(&lines, blocks, stride, &right, &mut c, ldc, add));
                for (i, j) in (0..K::MR).flat_map(|i| (0..K::NR).map(move |j| (i, j))) {
                    let product = |k: usize| {
                        let line = lines[k / K::NR * stride + i * K::NR + k % K::NR];
                        f64::from(line.wide()) * f64::from(rows[j * depth + k].wide())
                    };
                    let sum = (0..depth).map(product).sum::<f64>() + if add { 0.25 } else { 0.0 };
                    let got = f64::from(c[i * ldc + j]);
                    assert!((got - sum).abs() < 1e-4, "{i},{j}: {got} {sum}");
                }
            }
        }
    }

    #[test]
    fn unpacked_left_sides_give_the_same_sums_and_turned_sums_are_the_transpose() {
        for blocks in [1, 2, 5] {
            f32::with_each_kernel(Check(blocks));
            bf16::with_each_kernel(Check(blocks));
        }
    }
}
