//! The fast paths and the composition against f64.

use super::buffers::{HeadGradient, chunk_tokens};
use super::*;
use crate::adamw::sum_of_squares;
use crate::check;
use candle_core::Device;
use proptest::prelude::*;

const TARGETS: [i64; 5] = [3, IGNORE_INDEX, 0, 6, IGNORE_INDEX];

fn reference(x: &[Tensor], softcap: Option<f64>) -> Result<Tensor> {
    let mut logits = x[0].matmul(&x[1].t()?)?;
    if let Some(cap) = softcap {
        logits = ((logits / cap)?.tanh()? * cap)?;
    }
    let kept = Tensor::new(&[0u32, 2, 3], &Device::Cpu)?;
    let targets = Tensor::new(&[3u32, 0, 6], &Device::Cpu)?;
    candle_nn::loss::cross_entropy(&logits.index_select(&kept, 0)?, &targets)? * (3.0 * 0.25)
}

#[test]
fn matches_the_composition() -> Result<()> {
    for softcap in [None, Some(0.7)] {
        check::pair(
            &[&[5, 4], &[7, 4]],
            |x| reference(x, softcap),
            |x| {
                let score = forward(&x[0], &x[1], &TARGETS, softcap)?;
                Tensor::new(score.loss_sum * 0.25, &Device::Cpu)
            },
            |x, dy| {
                let scale = 0.25 * dy.to_scalar::<f64>()?;
                let d_head = x[1].zeros_like()?;
                let to = Some(&d_head);
                let (_, d) = forward_backward(&x[0], &x[1], &TARGETS, softcap, scale, to)?;
                Ok(vec![d, d_head])
            },
        )?;
    }
    Ok(())
}

#[test]
fn the_score_counts_targets_and_hits() -> Result<()> {
    let head = Tensor::eye(3, DType::F32, &Device::Cpu)?;
    let hidden = Tensor::new(&[[9f32, 0., 0.], [0., 9., 0.], [0., 9., 0.]], &Device::Cpu)?;
    let score = forward(&hidden, &head, &[0, 2, IGNORE_INDEX], None)?;
    assert_eq!((score.num_targets, score.num_correct), (2, 1));
    let log_probs = log_probs(&hidden, &head, &[0, 2, IGNORE_INDEX], None)?;
    assert!((log_probs.iter().sum::<f64>() + score.loss_sum).abs() < 1e-6);
    Ok(())
}

#[test]
fn nothing_to_train_gives_zero_gradients() -> Result<()> {
    for dtype in [DType::F32, DType::F64] {
        let x = check::random(&[&[2, 4], &[7, 4], &[7, 4]], dtype)?;
        let (ignored, before) = ([IGNORE_INDEX; 2], x[2].copy()?);
        let (score, d) = forward_backward(&x[0], &x[1], &ignored, None, 1.0, Some(&x[2]))?;
        assert_eq!(score, Score::default());
        check::close(&d, &x[0].zeros_like()?, 0.0)?;
        check::close(&x[2], &before, 0.0)?;
    }
    Ok(())
}

/// Values of several magnitudes, every third token without a target.
struct Case {
    hidden: Tensor,
    head: Tensor,
    targets: Vec<i64>,
    softcap: Option<f64>,
}

impl Case {
    fn new(tokens: usize, vocab: usize, width: usize, softcap: Option<f64>) -> Result<Self> {
        let x = check::random(&[&[tokens, width], &[vocab, width]], DType::F32)?;
        let target = |i: usize| if i % 3 == 2 { IGNORE_INDEX } else { (i * 31 % vocab) as i64 };
        let targets = (0..tokens).map(target).collect();
        Ok(Self { hidden: (&x[0] * 3.0)?, head: x[1].clone(), targets, softcap })
    }

    fn to_dtype(&self, dtype: DType) -> Result<Self> {
        let (hidden, head) = (self.hidden.to_dtype(dtype)?, self.head.to_dtype(dtype)?);
        Ok(Self { hidden, head, targets: self.targets.clone(), softcap: self.softcap })
    }

    /// The score, the gradient of `hidden`, and that of the head on top of [`BASE`].
    fn run(&self) -> Result<(Score, Tensor, Tensor)> {
        let wide = accumulation_dtype(self.head.dtype());
        let d_head = Tensor::full(BASE, self.head.shape(), &Device::Cpu)?.to_dtype(wide)?;
        let Self { hidden, head, targets, softcap } = self;
        let (score, d_hidden) =
            forward_backward(hidden, head, targets, *softcap, 0.5, Some(&d_head))?;
        assert_eq!(score, forward(hidden, head, targets, *softcap)?);
        let (_, alone) = forward_backward(hidden, head, targets, *softcap, 0.5, None)?;
        check::close(&alone, &d_hidden, 0.0)?;
        Ok((score, d_hidden, d_head))
    }

    /// The gradients of `hidden` and, in f32, of the head, which comes by `way`.
    fn run_by(&self, way: HeadGradient) -> Result<(Tensor, Tensor)> {
        let Self { hidden, head, targets, softcap } = self;
        let trained = trained(hidden, head, targets)?;
        let mut d_head = vec![0f32; head.elem_count()];
        let head = Head { hidden, weight: head, softcap: *softcap };
        let d_hidden = match hidden.dtype() {
            DType::BF16 => head.with_slices(|head: cpu::Head<bf16>| {
                let mut d_hidden = vec![bf16::ZERO; head.hidden.len()];
                head.gradients_by(way, &trained, 0.5, &mut d_hidden, Some(&mut d_head))?;
                slices::tensor(d_hidden, hidden.dims())
            }),
            _ => head.with_slices(|head: cpu::Head<f32>| {
                let mut d_hidden = vec![0f32; head.hidden.len()];
                head.gradients_by(way, &trained, 0.5, &mut d_hidden, Some(&mut d_head))?;
                slices::tensor(d_hidden, hidden.dims())
            }),
        }?;
        Ok((d_hidden, slices::tensor(d_head, self.head.dims())?))
    }
}

/// What gradients of the head are added to: so little that its own rounding does not matter.
const BASE: f64 = 1.0 / 64.0;

/// Relative to the gradient's norm, or to a tenth of what one token's can be: where the softmax
/// is next to one-hot, the gradient is a difference of nearly equal numbers.
fn relative_error(expected: &Tensor, got: &Tensor) -> Result<f64> {
    let got = got.to_dtype(DType::F64)?;
    let norm = |x: &Tensor| Ok::<_, candle_core::Error>(sum_of_squares(x)?.sqrt());
    Ok(norm(&(expected - got)?)? / norm(expected)?.max(0.1))
}

/// Both fast paths against f64 on the very same (rounded) inputs.
fn against_f64(case: &Case) -> Result<()> {
    for (dtype, loss_bound, bound) in [(DType::F32, 1e-6, 1e-5), (DType::BF16, 1e-6, 6e-3)] {
        let case = case.to_dtype(dtype)?;
        let (score, d_hidden, d_head) = case.run()?;
        let (expected, d_hidden_64, d_head_64) = case.to_dtype(DType::F64)?.run()?;
        assert_eq!(score.num_targets, expected.num_targets);
        assert_eq!(score.num_correct, expected.num_correct);
        let error = (score.loss_sum - expected.loss_sum).abs();
        assert!(error <= loss_bound * (1.0 + expected.loss_sum), "{dtype:?} loss: {error:e}");
        let d_hidden_error = relative_error(&d_hidden_64, &d_hidden)?;
        let d_head_64 = (d_head_64 - BASE)?;
        let d_head_error = relative_error(&d_head_64, &(d_head - BASE)?)?;
        assert!(d_hidden_error < bound, "{dtype:?} d_hidden: {d_hidden_error:e}");
        assert!(d_head_error < bound, "{dtype:?} d_head: {d_head_error:e}");
        // On this CPU only one of them is taken.
        for way in [HeadGradient::Kept, HeadGradient::Again] {
            let (same, d_head) = case.run_by(way)?;
            check::close(&same, &d_hidden, 0.0)?;
            let error = relative_error(&d_head_64, &d_head)?;
            assert!(error < bound, "{dtype:?} d_head {way:?}: {error:e}");
        }
        let Case { hidden, head, targets, softcap } = &case;
        let log_probs = log_probs(hidden, head, targets, *softcap)?;
        assert!((log_probs.iter().sum::<f64>() + score.loss_sum).abs() < 1e-9);
        let case_64 = case.to_dtype(DType::F64)?;
        let expected = super::log_probs(&case_64.hidden, &case_64.head, targets, *softcap)?;
        for ((target, got), expected) in targets.iter().zip(log_probs).zip(expected) {
            let bound = if *target == IGNORE_INDEX { 0.0 } else { 1e-5 * (1.0 - expected) };
            assert!((got - expected).abs() <= bound, "{dtype:?} {target}: {got} {expected}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_fast_paths_agree_with_f64_on_ragged_shapes(
        tokens in 1usize..40,
        vocab in 2usize..200,
        width in 1usize..40,
        softcap in prop_oneof![Just(None), Just(Some(2.5))],
    ) {
        let case = Case::new(tokens, vocab, width, softcap);
        case.and_then(|case| against_f64(&case)).expect("tensors of these shapes");
    }
}

/// Several pieces of the vocabulary, the last one ragged.
#[test]
fn the_fast_paths_agree_with_f64_across_pieces() -> Result<()> {
    for softcap in [None, Some(4.0)] {
        against_f64(&Case::new(50, 5000, 24, softcap)?)?;
    }
    Ok(())
}

/// So many tokens and so large a vocabulary that there are several chunks.
#[test]
fn chunks_add_up_and_give_the_same_bits_on_any_thread_count() -> Result<()> {
    for dtype in [DType::F32, DType::BF16] {
        // Where exponentials are kept, the vocabulary makes the chunks short.
        let way = HeadGradient::new(true, dtype);
        let many = (600, 100_000);
        let long = chunk_tokens(400, many.1, 8, dtype, way) >= 400;
        let ((tokens, vocab), trained) = if long { ((7000, 3000), 4600) } else { (many, 400) };
        let case = Case::new(tokens, vocab, 8, Some(5.0))?.to_dtype(dtype)?;
        let chunk = chunk_tokens(trained, vocab, 8, dtype, way);
        assert!(chunk < trained, "several chunks of {chunk}");
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("a pool").install(|| case.run())
        };
        let (one, three) = (on(1)?, on(3)?);
        assert_eq!(one.0.loss_sum.to_bits(), three.0.loss_sum.to_bits());
        check::close(&one.1, &three.1, 0.0)?;
        check::close(&one.2, &three.2, 0.0)?;
        let halves: Vec<f64> = [0..tokens / 2, tokens / 2..tokens]
            .map(|half: std::ops::Range<usize>| {
                let rows = case.hidden.narrow(0, half.start, half.len())?;
                forward(&rows, &case.head, &case.targets[half], case.softcap)
            })
            .into_iter()
            .map(|score| Ok(score?.loss_sum))
            .collect::<Result<_>>()?;
        assert!((halves.iter().sum::<f64>() - one.0.loss_sum).abs() < 1e-6);
    }
    Ok(())
}

/// A frozen head takes so many tokens at a time that they are rarely several chunks.
#[test]
fn chunks_of_a_frozen_head_are_those_of_a_trained_one() -> Result<()> {
    for dtype in [DType::F32, DType::BF16] {
        let (tokens, trained, vocab) = (7000, 4667, 300);
        let chunk = chunk_tokens(trained, vocab, 8, dtype, HeadGradient::Unwanted);
        assert!(chunk < trained, "several chunks of {chunk}");
        Case::new(tokens, vocab, 8, None)?.to_dtype(dtype)?.run()?;
    }
    Ok(())
}

#[test]
fn a_gradient_of_another_shape_or_dtype_is_refused() -> Result<()> {
    let x = check::random(&[&[2, 4], &[7, 4], &[6, 4]], DType::BF16)?;
    let narrow = x[1].to_dtype(DType::F32)?.to_dtype(DType::BF16)?;
    let refused = |dtype, d_head: &Tensor| -> Result<bool> {
        let (hidden, head) = (x[0].to_dtype(dtype)?, x[1].to_dtype(dtype)?);
        Ok(forward_backward(&hidden, &head, &[0, 1], None, 1.0, Some(d_head)).is_err())
    };
    assert!(refused(DType::BF16, &x[2].to_dtype(DType::F32)?)?, "another shape");
    assert!(refused(DType::BF16, &x[1])?, "the head itself");
    assert!(refused(DType::F32, &narrow)?, "narrower than the head");
    assert!(!refused(DType::BF16, &narrow)?, "as narrow as the head");
    Ok(())
}

#[test]
fn a_target_outside_of_the_vocabulary_is_refused() -> Result<()> {
    let x = check::random(&[&[2, 4], &[7, 4]], DType::F32)?;
    for targets in [[0, 7], [0, -1]] {
        let error = forward(&x[0], &x[1], &targets, None).expect_err("out of range");
        assert!(error.to_string().contains("vocabulary of 7"), "{error}");
    }
    assert!(forward(&x[0], &x[1], &[0], None).is_err());
    Ok(())
}
