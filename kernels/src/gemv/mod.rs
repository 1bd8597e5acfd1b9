//! `y = x·Wᵀ + b` for the few rows of a decode step, where reading `W` is all the work.
//!
//! Nothing is packed: each weight is read once, front to back, for the whole batch. The sum of an
//! output element is taken in an order that its weight's shape alone decides, so a row gets the
//! same bits whatever other rows stand beside it, on any number of threads (but on a GPU, where many
//! rows go through cuBLAS).

mod prefetch;
#[cfg(test)]
mod scalar;
mod vectors;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use candle_core::{DType, Result, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use crate::cpu::{self, Real};
#[cfg(feature = "cuda")]
use crate::cuda::{
    empty,
    gemm::{Before, Factor, multiply},
    gemv as gpu, on_gpu,
};
use crate::fresh::fresh;
#[cfg(target_arch = "x86_64")]
use crate::gemm;
use crate::gemm::{Output, Tiles};
use crate::profile::{self, Op, Timer};
use crate::scratch::{Plain, Scratch};
use crate::{accumulation_dtype, linear};

/// A weight and its bias.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// `[O, I]`.
    pub weight: &'a Tensor,
    /// `[O]`.
    pub bias: Option<&'a Tensor>,
}

/// `x [N, I]` by each of `layers` → `[N, O]` each, in the dtype of `x`; sums are f32 and rounded
/// once, the bias included.
pub fn forward(x: &Tensor, layers: &[Layer]) -> Result<Vec<Tensor>> {
    let _timer = timer(x, layers.iter().map(|layer| layer.weight));
    check(x, layers)?;
    let tensors = layers.iter().flat_map(|layer| [Some(layer.weight), layer.bias]).flatten();
    let tensors: Vec<&Tensor> = std::iter::once(x).chain(tensors).collect();
    match cpu::fast_dtype(&tensors) {
        Some(DType::BF16) => products::<bf16, bf16>(&tensors, layers),
        Some(_) => products::<f32, f32>(&tensors, layers),
        None => layers
            .iter()
            .map(|layer| match layer {
                #[cfg(feature = "cuda")]
                Layer { weight, bias } if gpu::takes(x, weight, *bias) => {
                    gpu::product(x, weight, *bias, x.dtype())
                }
                Layer { weight, bias } => linear::forward(x, weight, *bias),
            })
            .collect(),
    }
}

/// `x [N, I]`, `weight [O, I]` → `[N, O]`, the sums as they are: f32 (f64 for f64).
pub fn forward_wide(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let _timer = timer(x, [weight]);
    let layers = [Layer { weight, bias: None }];
    check(x, &layers)?;
    let products = match cpu::fast_dtype(&[x, weight]) {
        Some(DType::BF16) => products::<bf16, f32>(&[x, weight], &layers)?,
        Some(_) => products::<f32, f32>(&[x, weight], &layers)?,
        #[cfg(feature = "cuda")]
        None if gpu::takes(x, weight, None) => {
            vec![gpu::product(x, weight, None, DType::F32)?]
        }
        #[cfg(feature = "cuda")]
        None if on_gpu(&[x, weight]) => vec![products_of_gpu(x, weight)?],
        None => vec![linear::forward(x, weight, None)?.to_dtype(accumulation_dtype(x.dtype()))?],
    };
    products.into_iter().next().map_or_else(|| bail!("a product of one weight"), Ok)
}

/// `x [N, I]`, `weight [O, I]` → f32 `[N, O]`, of more rows than the GPU's kernel takes.
#[cfg(feature = "cuda")]
fn products_of_gpu(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let products = empty((x.dim(0)?, weight.dim(0)?), DType::F32, x.device())?;
    let (x, weight) = (Factor::new(x)?, Factor::transposed(weight)?);
    multiply(&products, &x, &weight, Before::Replaced)?;
    Ok(products)
}

fn check(x: &Tensor, layers: &[Layer]) -> Result<()> {
    let (_, inputs) = x.dims2()?;
    if inputs == 0 {
        bail!("a product over no inputs: x {:?}", x.dims());
    }
    for layer in layers {
        let (outputs, width) = layer.weight.dims2()?;
        if width != inputs || layer.bias.is_some_and(|bias| bias.dims() != [outputs]) {
            let bias = layer.bias.map(Tensor::dims);
            bail!("x {:?} by a weight {:?} and bias {bias:?}", x.dims(), layer.weight.dims());
        }
    }
    Ok(())
}

/// Bytes of a weight that a task reads: few enough to share out evenly, and to stay in L2 while
/// groups of rows take their turns.
const PANEL_BYTES: usize = 64 << 10;
/// Rows of a panel, at most.
const PANEL_ROWS: usize = 256;
/// Rows of `x` that a kernel takes at a time.
const GROUP: usize = 8;

/// Dot products of the rows of a panel with up to [`GROUP`] rows of `x`.
trait Kernel<T>: Send + Sync {
    /// What `x` is made of when the kernel sees it.
    type X: Plain;

    /// Lays out rows of `x [n, depth]` as the kernel reads them, group by group of [`GROUP`] rows,
    /// each row `padded(depth)` long in all.
    fn prepare(x: &[T], depth: usize) -> Scratch<Self::X>;

    /// Elements that a row of `x` takes.
    fn padded(depth: usize) -> usize;

    /// `panel [rows, depth]` and a group of `n` rows of `x` → `sums [n, rows]`.
    fn panel(panel: &[T], x: &[Self::X], depth: usize, sums: &mut [f32]);
}

/// A weight as the tasks see it.
struct Matrix<'a, T> {
    weight: &'a [T],
    bias: Option<&'a [T]>,
}

/// A panel of a matrix: which, and its rows.
struct Panel {
    matrix: usize,
    first: usize,
    rows: usize,
}

/// `tensors` are `x` and then each layer's weight and, where it has one, its bias.
fn products<T: Weight, O: Real>(tensors: &[&Tensor], layers: &[Layer]) -> Result<Vec<Tensor>> {
    let (tokens, depth) = tensors[0].dims2()?;
    with_all(tensors, vec![], |slices: &[&[T]]| {
        let mut rest = slices[1..].iter().copied();
        let mut next = || rest.next().unwrap_or_default();
        let matrix = |layer: &Layer| Matrix { weight: next(), bias: layer.bias.map(|_| next()) };
        let matrices: Vec<Matrix<T>> = layers.iter().map(matrix).collect();
        let outputs: Vec<usize> =
            layers.iter().map(|layer| layer.weight.dim(0)).collect::<Result<_>>()?;
        let mut products: Vec<Vec<O>> =
            outputs.iter().map(|o| fresh(tokens * o)).collect::<Result<_>>()?;
        let tiles: Vec<Tiles<O>> = products
            .iter_mut()
            .zip(&outputs)
            .map(|(out, outputs)| Tiles::new(out, tokens, *outputs, *outputs))
            .collect();
        T::fill(slices[0], depth, &matrices, &outputs, &tiles);
        drop(tiles);
        let shaped = products.into_iter().zip(&outputs);
        shaped.map(|(product, outputs)| cpu::tensor(product, (tokens, *outputs))).collect()
    })
}

/// An element with kernels.
trait Weight: Real {
    fn fill<O: Output>(
        x: &[Self],
        depth: usize,
        matrices: &[Matrix<Self>],
        outputs: &[usize],
        tiles: &[Tiles<O>],
    );
}

impl Weight for f32 {
    fn fill<O: Output>(
        x: &[f32],
        depth: usize,
        matrices: &[Matrix<f32>],
        outputs: &[usize],
        tiles: &[Tiles<O>],
    ) {
        fill::<f32, vectors::Vectors, O>(x, depth, matrices, outputs, tiles);
    }
}

impl Weight for bf16 {
    fn fill<O: Output>(
        x: &[bf16],
        depth: usize,
        matrices: &[Matrix<bf16>],
        outputs: &[usize],
        tiles: &[Tiles<O>],
    ) {
        #[cfg(target_arch = "x86_64")]
        if gemm::multiplies_bf16_pairs() {
            return fill::<bf16, avx512::Pairs, O>(x, depth, matrices, outputs, tiles);
        } else if gemm::has_avx2() {
            return fill::<bf16, avx2::Widened, O>(x, depth, matrices, outputs, tiles);
        }
        fill::<bf16, vectors::Vectors, O>(x, depth, matrices, outputs, tiles);
    }
}

/// Counts the products of the rows of `x` by `weights`.
fn timer<'a>(x: &Tensor, weights: impl IntoIterator<Item = &'a Tensor>) -> Timer {
    let rows = x.dims().first().copied().unwrap_or(0);
    let (mut elements, mut bytes) = (0, 0);
    for weight in weights {
        elements += weight.elem_count();
        bytes += weight.elem_count() * weight.dtype().size_in_bytes();
    }
    profile::time(Op::LinearForward, 2 * rows * elements).moving(bytes)
}

fn fill<T: Real, K: Kernel<T>, O: Output>(
    x: &[T],
    depth: usize,
    matrices: &[Matrix<T>],
    outputs: &[usize],
    tiles: &[Tiles<O>],
) {
    let (x, padded) = (K::prepare(x, depth), K::padded(depth));
    let panels = panels(outputs, depth * size_of::<T>());
    panels.par_iter().for_each_init(Vec::new, |sums: &mut Vec<f32>, panel| {
        let Matrix { weight, bias } = &matrices[panel.matrix];
        let weight = &weight[panel.first * depth..][..panel.rows * depth];
        for (group, x) in x.chunks(GROUP * padded).enumerate() {
            let batch = x.len() / padded;
            sums.resize(batch * panel.rows, 0.0);
            K::panel(weight, x, depth, sums);
            if let Some(bias) = bias {
                let bias = &bias[panel.first..][..panel.rows];
                for sums in sums.chunks_exact_mut(panel.rows) {
                    sums.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias.wide());
                }
            }
            let place = [group * GROUP, panel.first];
            tiles[panel.matrix].write(place, [batch, panel.rows], sums, panel.rows, false);
        }
    });
}

/// The panels of all matrices, in their order.
fn panels(outputs: &[usize], row_bytes: usize) -> Vec<Panel> {
    let most = (PANEL_BYTES / row_bytes.max(1)).clamp(4, PANEL_ROWS) / 4 * 4;
    let of = |(matrix, outputs): (usize, &usize)| {
        let outputs = *outputs;
        let panel = move |first| Panel { matrix, first, rows: most.min(outputs - first) };
        (0..outputs).step_by(most).map(panel)
    };
    outputs.iter().enumerate().flat_map(of).collect()
}

/// Calls `f` with the values of all tensors.
fn with_all<T: Real, R>(
    tensors: &[&Tensor],
    mut slices: Vec<&[T]>,
    f: impl FnOnce(&[&[T]]) -> Result<R>,
) -> Result<R> {
    match tensors {
        [] => f(&slices),
        [first, rest @ ..] => cpu::with([*first], |[values]: [&[T]; 1]| {
            let mut slices: Vec<&[T]> = std::mem::take(&mut slices);
            slices.push(values);
            with_all(rest, slices, f)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use proptest::prelude::*;

    /// `x`, weights and biases as bf16 can hold them, in f64.
    fn inputs(tokens: usize, depth: usize, outputs: &[usize]) -> Result<Vec<Tensor>> {
        let mut shapes = vec![vec![tokens, depth]];
        shapes.extend(outputs.iter().flat_map(|outputs| [vec![*outputs, depth], vec![*outputs]]));
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        let tensors = check::random(&shapes, DType::BF16)?;
        tensors.iter().map(|tensor| tensor.to_dtype(DType::F64)).collect()
    }

    /// Every second layer has a bias.
    fn layers(tensors: &[Tensor]) -> Vec<Layer<'_>> {
        tensors
            .chunks_exact(2)
            .enumerate()
            .map(|(index, pair)| Layer {
                weight: &pair[0],
                bias: (index % 2 == 1).then_some(&pair[1]),
            })
            .collect()
    }

    fn run(tensors: &[Tensor], dtype: DType) -> Result<Vec<Tensor>> {
        let tensors: Vec<Tensor> =
            tensors.iter().map(|tensor| tensor.to_dtype(dtype)).collect::<Result<_>>()?;
        forward(&tensors[0], &layers(&tensors[1..]))
    }

    /// One kernel over one panel, against sums in f64.
    fn check_kernel<T: Real, K: Kernel<T>>(tokens: usize, depth: usize, rows: usize) -> Result<()> {
        let tensors = inputs(tokens, depth, &[rows])?;
        let expected = tensors[0].matmul(&tensors[1].t()?)?;
        let values = |tensor: &Tensor| -> Result<Vec<T>> {
            tensor.to_dtype(T::DTYPE)?.flatten_all()?.to_vec1()
        };
        let (x, panel) = (values(&tensors[0])?, values(&tensors[1])?);
        let mut sums = vec![f32::NAN; tokens * rows];
        K::panel(&panel, &K::prepare(&x, depth), depth, &mut sums);
        check::close(&expected, &cpu::tensor(sums, (tokens, rows))?, 1e-6 * depth as f64)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn every_kernel_is_right_on_ragged_shapes(
            tokens in 1usize..=GROUP, depth in 1usize..150, rows in 1usize..20,
        ) {
            check_kernel::<f32, scalar::Scalar>(tokens, depth, rows)?;
            check_kernel::<bf16, scalar::Scalar>(tokens, depth, rows)?;
            check_kernel::<f32, vectors::Vectors>(tokens, depth, rows)?;
            check_kernel::<bf16, vectors::Vectors>(tokens, depth, rows)?;
            #[cfg(target_arch = "x86_64")]
            if gemm::multiplies_bf16_pairs() {
                check_kernel::<bf16, avx512::Pairs>(tokens, depth, rows)?;
            }
            #[cfg(target_arch = "x86_64")]
            if gemm::has_avx2() {
                check_kernel::<bf16, avx2::Widened>(tokens, depth, rows)?;
            }
        }

        #[test]
        fn several_layers_at_once_are_the_composition(
            tokens in 1usize..35, depth in 1usize..80,
            outputs in prop::collection::vec(1usize..600, 1..4),
        ) {
            let tensors = inputs(tokens, depth, &outputs)?;
            let (wide, narrow) = (run(&tensors, DType::F32)?, run(&tensors, DType::BF16)?);
            for (index, expected) in run(&tensors, DType::F64)?.iter().enumerate() {
                check::close(expected, &wide[index], 2e-6 * depth as f64)?;
                check::close(expected, &narrow[index], 0.005 * depth as f64)?;
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_batch_and_on_any_thread_count() -> Result<()> {
        // Rows of one block along the depth, and of several with a rest.
        for (dtype, depth) in
            [(DType::F32, 1000), (DType::BF16, 1000), (DType::F32, 2085), (DType::BF16, 2085)]
        {
            let tensors = inputs(21, depth, &[301, 77])?;
            let bits = |threads, first, tokens| {
                let mut tensors = tensors.clone();
                tensors[0] = tensors[0].narrow(0, first, tokens)?;
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                let products = pool.expect("a pool").install(|| run(&tensors, dtype))?;
                products[1].to_dtype(DType::F32)?.to_vec2::<f32>()
            };
            let all = bits(1, 0, 21)?;
            assert_eq!(all, bits(3, 0, 21)?);
            for (first, tokens) in [(0, 1), (20, 1), (3, 2), (5, 3), (1, 4), (6, 5), (9, 12)] {
                assert_eq!(all[first..first + tokens], bits(2, first, tokens)?, "{tokens} rows");
            }
        }
        Ok(())
    }

    /// One kernel over groups of the same rows of `x`, in any company.
    #[cfg(target_arch = "x86_64")]
    fn check_company<T: Real, K: Kernel<T>>(depth: usize) -> Result<()> {
        let tensors = inputs(GROUP, depth, &[7])?;
        let values = |tensor: &Tensor| -> Result<Vec<T>> {
            tensor.to_dtype(T::DTYPE)?.flatten_all()?.to_vec1()
        };
        let (x, panel) = (values(&tensors[0])?, values(&tensors[1])?);
        let of = |first: usize, rows: usize| {
            let mut sums = vec![f32::NAN; rows * 7];
            let x = K::prepare(&x[first * depth..][..rows * depth], depth);
            K::panel(&panel, &x, depth, &mut sums);
            sums
        };
        let all = of(0, GROUP);
        for rows in 1..GROUP {
            for first in 0..=GROUP - rows {
                assert_eq!(of(first, rows), all[first * 7..][..rows * 7], "{rows} rows");
            }
        }
        Ok(())
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_row_has_the_same_bits_by_each_kernel_in_any_company() -> Result<()> {
        for depth in [5, 64, 1000, 2085] {
            if gemm::has_avx2() {
                check_company::<bf16, avx2::Widened>(depth)?;
            }
            if gemm::multiplies_bf16_pairs() {
                check_company::<bf16, avx512::Pairs>(depth)?;
            }
        }
        Ok(())
    }

    /// Deeper than what the kernels take at a time, an odd number of rows.
    #[test]
    fn deep_panels_are_right_for_every_group() -> Result<()> {
        for tokens in 1..=GROUP {
            for depth in [1024, 1025, 3072, 3079] {
                check_kernel::<f32, vectors::Vectors>(tokens, depth, 7)?;
                #[cfg(target_arch = "x86_64")]
                if gemm::multiplies_bf16_pairs() {
                    check_kernel::<bf16, avx512::Pairs>(tokens, depth, 7)?;
                }
                #[cfg(target_arch = "x86_64")]
                if gemm::has_avx2() {
                    check_kernel::<bf16, avx2::Widened>(tokens, depth, 7)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn the_sums_of_logits_are_not_rounded() -> Result<()> {
        let tensors = inputs(3, 64, &[50])?;
        let expected = tensors[0].matmul(&tensors[1].t()?)?;
        let of = |dtype| forward_wide(&tensors[0].to_dtype(dtype)?, &tensors[1].to_dtype(dtype)?);
        for (dtype, wide) in
            [(DType::BF16, DType::F32), (DType::F32, DType::F32), (DType::F64, DType::F64)]
        {
            let found = of(dtype)?;
            assert_eq!(found.dtype(), wide);
            check::close(&expected, &found, 1e-5)?;
        }
        Ok(())
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() -> Result<()> {
        let tensors = inputs(2, 5, &[4, 3])?;
        let wrong = Layer { weight: &tensors[1], bias: Some(&tensors[4]) };
        assert!(forward(&tensors[0], &[wrong]).is_err());
        assert!(forward(&tensors[1].t()?.contiguous()?, &layers(&tensors[1..])).is_err());
        Ok(())
    }
}
