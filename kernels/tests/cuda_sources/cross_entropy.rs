//! Logits are the hidden states themselves under a head that is one, so that the crate's op, which has
//! the product in it, gives their gradient.

use candle_core::{DType, Device, Result, Tensor};
use chandler_kernels::linear_cross_entropy::{self, IGNORE_INDEX};
use chandler_kernels::logits::most_probable_of_rows;

use crate::buffer::Buffer;
use crate::compare::{DTYPES, random, suffix, within};
use crate::emulator::{Program, program};

const SCALE: f64 = 0.25;

struct Case {
    logits: Tensor,
    targets: Vec<i64>,
    softcap: Option<f64>,
}

/// Of each row.
struct Scores {
    losses: Vec<f32>,
    hits: Vec<u32>,
}

impl Case {
    /// Every third row has no target.
    fn new(rows: usize, vocab: usize, softcap: Option<f64>, dtype: DType) -> Result<Self> {
        let logits = (random(&[&[rows, vocab]], dtype)?.remove(0) * 8.0)?;
        let target = |i: usize| if i % 3 == 2 { IGNORE_INDEX } else { (i * 31 % vocab) as i64 };
        Ok(Self { logits, targets: (0..rows).map(target).collect(), softcap })
    }

    fn lists(&self) -> [Buffer; 3] {
        let targets: Vec<i32> = self.targets.iter().map(|target| *target as i32).collect();
        let rows = targets.len();
        [Buffer::of(&targets), Buffer::unset::<f32>(rows), Buffer::unset::<u32>(rows)]
    }

    fn forward(&self, program: &Program) -> Result<Scores> {
        let (rows, vocab) = self.logits.dims2()?;
        let logits = Buffer::of_tensor(&self.logits)?;
        let [targets, losses, hits] = self.lists();
        let kernel = format!("cross_entropy_forward_{}", suffix(self.logits.dtype()));
        let launch = program.launch(&kernel, [rows, 1, 1], 512);
        launch
            .buffer(&logits)
            .buffer(&targets)
            .buffer(&losses)
            .buffer(&hits)
            .value(vocab as u32)
            .value(vocab as u64)
            .value(self.softcap.unwrap_or(0.0) as f32)
            .run();
        Ok(Scores { losses: losses.values(), hits: hits.values() })
    }

    /// The gradient in `dtype` lies over the logits.
    fn gradient(&self, program: &Program, dtype: DType) -> Result<(Scores, Tensor)> {
        let (rows, vocab) = self.logits.dims2()?;
        let logits = Buffer::of_tensor(&self.logits)?;
        let [targets, losses, hits] = self.lists();
        let from = self.logits.dtype();
        let d_stride = vocab * from.size_in_bytes() / dtype.size_in_bytes();
        let kernel = format!("cross_entropy_gradient_{}_{}", suffix(from), suffix(dtype));
        let launch = program.launch(&kernel, [rows, 1, 1], 512);
        launch
            .buffer(&logits)
            .buffer(&targets)
            .buffer(&logits)
            .buffer(&losses)
            .buffer(&hits)
            .value(vocab as u32)
            .value(vocab as u64)
            .value(d_stride as u64)
            .value(self.softcap.unwrap_or(0.0) as f32)
            .value(SCALE as f32)
            .run();
        let gradient = logits.tensor(&[rows, d_stride], dtype)?.narrow(1, 0, vocab)?;
        Ok((Scores { losses: losses.values(), hits: hits.values() }, gradient))
    }

    /// Holds losses and hits against those of the crate's op over the same logits in f32.
    fn check_scores(&self, scores: &Scores) -> Result<()> {
        let (hidden, head) = self.hidden_and_head()?;
        let log_probs =
            linear_cross_entropy::log_probs(&hidden, &head, &self.targets, self.softcap)?;
        let score = linear_cross_entropy::forward(&hidden, &head, &self.targets, self.softcap)?;
        for (i, (loss, log_prob)) in scores.losses.iter().zip(log_probs).enumerate() {
            assert!((f64::from(*loss) + log_prob).abs() <= 4e-6, "row {i}: {loss}, {log_prob}");
        }
        assert_eq!(scores.hits.iter().sum::<u32>() as usize, score.num_correct);
        Ok(())
    }

    fn hidden_and_head(&self) -> Result<(Tensor, Tensor)> {
        let head = Tensor::eye(self.logits.dim(1)?, DType::F32, &Device::Cpu)?;
        Ok((self.logits.to_dtype(DType::F32)?, head))
    }
}

/// In bf16 the gradient is that of f32, rounded once.
fn agrees(rows: usize, vocab: usize, softcap: Option<f64>) -> Result<()> {
    let Some(program) = program("cross_entropy") else { return Ok(()) };
    for (from, to) in
        [(DType::F32, DType::F32), (DType::BF16, DType::BF16), (DType::F32, DType::BF16)]
    {
        let case = Case::new(rows, vocab, softcap, from)?;
        let (scores, gradient) = case.gradient(&program, to)?;
        case.check_scores(&scores)?;
        let (hidden, head) = case.hidden_and_head()?;
        let (_, expected) = linear_cross_entropy::forward_backward(
            &hidden,
            &head,
            &case.targets,
            softcap,
            SCALE,
            None,
        )?;
        within(&gradient, &expected.to_dtype(to)?, 2.0)?;
    }
    for dtype in DTYPES {
        let case = Case::new(rows, vocab, softcap, dtype)?;
        case.check_scores(&case.forward(&program)?)?;
    }
    Ok(())
}

#[test]
fn vocabularies_of_any_size() -> Result<()> {
    for (rows, vocab) in [(1, 1), (4, 3), (5, 100), (3, 1003), (4, 2304)] {
        agrees(rows, vocab, None)?;
        agrees(rows, vocab, Some(5.0))?;
    }
    Ok(())
}

/// Ids, and their log-probabilities.
fn most_probable(program: &Program, logits: &Tensor) -> Result<(Vec<u32>, Vec<f32>)> {
    let (rows, vocab) = logits.dims2()?;
    let pieces = vocab.div_ceil(8192);
    let (logits, of_pieces) = (Buffer::of_tensor(logits)?, Buffer::unset::<u32>(rows * pieces * 3));
    let launch = program.launch("most_probable_piece_f32", [pieces, rows, 1], 512);
    launch.buffer(&logits).buffer(&of_pieces).value(vocab as u32).run();
    let (ids, logprobs) = (Buffer::unset::<u32>(rows), Buffer::unset::<f32>(rows));
    let launch = program.launch("most_probable_merge", [rows, 1, 1], 128);
    launch.buffer(&of_pieces).buffer(&ids).buffer(&logprobs).value(pieces as u32).run();
    Ok((ids.values(), logprobs.values()))
}

#[test]
fn the_most_probable_token_of_each_row() -> Result<()> {
    let Some(program) = program("cross_entropy") else { return Ok(()) };
    let of_one_piece = [(1, 1), (4, 3), (5, 100), (3, 1003), (4, 2304), (1, 8192)];
    let of_several = [(2, 8193), (2, 24_572), (2, 35_001)];
    for (rows, vocab) in of_one_piece.into_iter().chain(of_several) {
        let logits = Case::new(rows, vocab, None, DType::F32)?.logits;
        let (ids, logprobs) = most_probable(&program, &logits)?;
        let expected = most_probable_of_rows(&logits)?;
        for (row, (id, logprob)) in expected.into_iter().enumerate() {
            assert_eq!(ids[row], id, "row {row} of {rows} x {vocab}");
            assert!((f64::from(logprobs[row]) - logprob).abs() <= 4e-6, "{logprobs:?}: {logprob}");
        }
    }
    Ok(())
}

/// The first of equal ones, be they in one piece or in two, and 0 where nothing is above −∞; a piece may
/// have nothing either.
#[test]
fn of_the_most_probable_the_first_counts() -> Result<()> {
    const NONE: f32 = f32::NEG_INFINITY;
    let Some(program) = program("cross_entropy") else { return Ok(()) };
    for vocab in [20_000, 20_001] {
        let row = |fill: f32, best: &[usize]| {
            let mut row = vec![fill; vocab];
            for at in best {
                row[*at] = 3.0;
            }
            row
        };
        let rows = vec![
            row(0.0, &[700, 2400]),
            row(0.0, &[8191, 8192]),
            row(NONE, &[9000, 19_999]),
            row(NONE, &[]),
        ];
        let (ids, logprobs) = most_probable(&program, &Tensor::new(rows, &Device::Cpu)?)?;
        assert_eq!(ids, [700, 8191, 9000, 0]);
        assert!((logprobs[2] + 2f32.ln()).abs() <= 1e-6, "{logprobs:?}");
    }
    Ok(())
}

#[test]
fn of_equal_logits_the_first_counts() -> Result<()> {
    let Some(program) = program("cross_entropy") else { return Ok(()) };
    let mut row = vec![0f32; 2500];
    for at in [70, 75, 600, 2400] {
        row[at] = 3.0;
    }
    let logits = Tensor::new(vec![row; 4], &Device::Cpu)?;
    for dtype in DTYPES {
        let targets = vec![70, 75, 600, 69];
        let case = Case { logits: logits.to_dtype(dtype)?, targets, softcap: None };
        assert_eq!(case.forward(&program)?.hits, [1, 0, 0, 0]);
        assert_eq!(case.gradient(&program, dtype)?.0.hits, [1, 0, 0, 0]);
    }
    Ok(())
}

#[test]
fn what_is_ruled_out_has_no_gradient_and_what_is_not_a_number_stays() -> Result<()> {
    let Some(program) = program("cross_entropy") else { return Ok(()) };
    let ruled_out = [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, 1.0];
    let logits = Tensor::new(&[ruled_out, [0.0, f32::NAN, 1.0, 2.0]], &Device::Cpu)?;
    let case = Case { logits, targets: vec![1, 3], softcap: None };
    let (scores, gradient) = case.gradient(&program, DType::F32)?;
    let gradient = gradient.to_vec2::<f32>()?;
    assert!((scores.losses[0] - 2f32.ln()).abs() < 1e-6 && scores.losses[1].is_nan());
    assert_eq!(gradient[0], [0.0, -0.125, 0.0, 0.125]);
    assert!(gradient[1].iter().all(|d| d.is_nan()));
    Ok(())
}

#[test]
fn losses_and_hits_are_added_up() {
    let Some(program) = program("cross_entropy") else { return };
    for rows in [1usize, 511, 512, 513, 5000] {
        let losses: Vec<f32> = (0..rows).map(|row| (row % 97) as f32 * 0.125).collect();
        let hits: Vec<u32> = (0..rows).map(|row| u32::from(row % 5 == 0)).collect();
        let (of_losses, of_hits) = (Buffer::of(&losses), Buffer::of(&hits));
        let found = Buffer::unset::<f64>(2);
        let launch = program.launch("cross_entropy_total", [1; 3], 512);
        launch.buffer(&of_losses).buffer(&of_hits).value(rows as u32).buffer(&found).run();
        // All of these sums are exact.
        let sum: f64 = losses.iter().map(|loss| f64::from(*loss)).sum();
        assert_eq!(found.values::<f64>(), [sum, hits.iter().sum::<u32>().into()], "{rows}");
    }
}
