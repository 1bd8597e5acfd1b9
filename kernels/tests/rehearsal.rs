//! Rehearsed buffers against those that the ops take, counted in a process of its own: the pool is
//! one for all.

use candle_core::{DType, Device, Result, Tensor};
use chandler_kernels::attention::{self, Params};
use chandler_kernels::rehearsal::Rehearsal;
use chandler_kernels::{linear, linear_cross_entropy, rms_norm, scratch};

/// Of an adapter.
const RANK: usize = 9;

struct Case {
    documents: Vec<usize>,
    heads: [usize; 3],
    params: Params,
    sizes: [usize; 2],
    dtype: DType,
}

impl Case {
    fn tokens(&self) -> usize {
        self.documents.iter().sum()
    }

    /// Some ops of a step as they are; returns what the pool holds.
    fn run(&self) -> Result<usize> {
        let (tokens, [vocab, width]) = (self.tokens(), self.sizes);
        let ones = |shape: &[usize]| Tensor::ones(shape, self.dtype, &Device::Cpu);
        let (x, head) = (ones(&[tokens, width])?, ones(&[vocab, width])?);
        let weight = ones(&[3 * width, width])?;
        let norm = rms_norm::Params { eps: 1e-6, unit_offset: false };
        rms_norm::forward(&x, &ones(&[width])?, norm)?;
        let (a, b) = (ones(&[RANK, width])?, ones(&[3 * width, RANK])?);
        let narrow = linear::forward(&x, &a, None)?;
        let wide = linear::forward(&narrow, &b, None)?;
        linear::backward_weight(&narrow, &wide)?;
        linear::backward_weight(&x, &narrow)?;
        let y = linear::forward(&x, &weight, None)?;
        let [query, kv, dim] = self.heads;
        let (q, k) = (ones(&[tokens, query, dim])?, ones(&[tokens, kv, dim])?);
        let mut ends = vec![0];
        for length in &self.documents {
            ends.push(ends[ends.len() - 1] + *length as u32);
        }
        attention::forward(&q, &k, &k, &ends, self.params)?;
        let targets = vec![1; tokens];
        let d_head = Tensor::zeros((vocab, width), DType::F32, &Device::Cpu)?;
        linear_cross_entropy::forward_backward(&x, &head, &targets, None, 1.0, None)?;
        linear_cross_entropy::forward_backward(&x, &head, &targets, None, 1.0, Some(&d_head))?;
        linear::backward_input(&weight, &y)?;
        linear::backward_weight(&x, &y)?;
        attention::backward(&q, &k, &k, &ends, self.params, &q)?;
        rms_norm::backward(&x, &ones(&[width])?, norm, &x, true)?;
        Ok(scratch::held_bytes())
    }

    /// The same, rehearsed.
    fn rehearse(&self, pool: &mut Rehearsal) -> usize {
        let (tokens, [vocab, width]) = (self.tokens(), self.sizes);
        let (documents, dtype) = (&self.documents, self.dtype);
        rms_norm::rehearse_forward(pool, [tokens, width]);
        linear::rehearse(pool, [tokens, RANK, width], dtype);
        linear::rehearse(pool, [tokens, 3 * width, RANK], dtype);
        linear::rehearse_weight_gradient(pool, [3 * width, RANK, tokens], dtype, DType::F32);
        linear::rehearse_weight_gradient(pool, [RANK, width, tokens], dtype, DType::F32);
        linear::rehearse(pool, [tokens, 3 * width, width], dtype);
        attention::rehearse_forward(pool, self.heads, documents, self.params, dtype);
        let size = [tokens, vocab, width];
        linear_cross_entropy::rehearse_forward_backward(pool, size, dtype, false);
        linear_cross_entropy::rehearse_forward_backward(pool, size, dtype, true);
        linear::rehearse(pool, [tokens, width, 3 * width], dtype);
        linear::rehearse_weight_gradient(pool, [3 * width, width, tokens], dtype, DType::F32);
        attention::rehearse_backward(pool, self.heads, documents, self.params, dtype);
        rms_norm::rehearse_backward(pool, [tokens, width], true);
        pool.held_bytes()
    }
}

#[test]
fn the_pool_holds_what_was_rehearsed() -> Result<()> {
    // With more threads, which of them comes first for a buffer is a matter of luck.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    pool.map_err(candle_core::Error::wrap)?.install(holds_what_was_rehearsed)
}

fn holds_what_was_rehearsed() -> Result<()> {
    let plain = Params { scale: 0.2, softcap: None, window: None };
    let capped = Params { softcap: Some(20.0), window: Some(100), ..plain };
    for dtype in [DType::F32, DType::BF16] {
        for (documents, heads, params, sizes) in [
            (vec![300], [4, 2, 32], plain, [2000, 128]),
            (vec![64, 200, 136], [8, 1, 64], capped, [9000, 96]),
            (vec![700, 20], [6, 6, 48], plain, [300, 288]),
            // Sums over more than is packed at a time.
            (vec![40], [4, 2, 32], plain, [300, 1400]),
        ] {
            let case = Case { documents, heads, params, sizes, dtype };
            scratch::release();
            let mut pool = Rehearsal::default();
            for round in 0..2 {
                let (held, said) = (case.run()?, case.rehearse(&mut pool));
                assert_eq!(held, said, "{dtype:?} {:?}, round {round}", case.documents);
            }
        }
    }
    Ok(())
}
