//! Trains a transformer block by candle's own autograd and candle-nn's AdamW, with the ops of this
//! crate: two sequences end to end, in which every token names the next one.

use std::io::Write;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use chandler_kernels::activation::Activation;
use chandler_kernels::autograd::{self, Reduction};
use chandler_kernels::{attention, rms_norm};

const VOCABULARY: usize = 64;
const WIDTH: usize = 48;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const FEED_FORWARD: usize = 96;
const NORM: rms_norm::Params = rms_norm::Params { eps: 1e-6, unit_offset: false };

struct Model {
    table: Var,
    attention_norm: Var,
    q: Var,
    k: Var,
    v: Var,
    o: Var,
    feed_forward_norm: Var,
    gate: Var,
    up: Var,
    down: Var,
    final_norm: Var,
}

/// What every layer needs to know about the tokens.
struct Layout {
    cu_seqlens: Vec<u32>,
    cos: Tensor,
    sin: Tensor,
}

impl Model {
    fn new() -> Result<Self> {
        let matrix = |o, i| Var::randn(0f32, 0.1, (o, i), &Device::Cpu);
        let ones = || Var::ones(WIDTH, DType::F32, &Device::Cpu);
        Ok(Self {
            table: matrix(VOCABULARY, WIDTH)?,
            attention_norm: ones()?,
            q: matrix(HEADS * HEAD_DIM, WIDTH)?,
            k: matrix(KV_HEADS * HEAD_DIM, WIDTH)?,
            v: matrix(KV_HEADS * HEAD_DIM, WIDTH)?,
            o: matrix(WIDTH, HEADS * HEAD_DIM)?,
            feed_forward_norm: ones()?,
            gate: matrix(FEED_FORWARD, WIDTH)?,
            up: matrix(FEED_FORWARD, WIDTH)?,
            down: matrix(WIDTH, FEED_FORWARD)?,
            final_norm: ones()?,
        })
    }

    fn vars(&self) -> Vec<Var> {
        let Self { table, q, k, v, o, gate, up, down, .. } = self;
        let norms = [&self.attention_norm, &self.feed_forward_norm, &self.final_norm];
        [table, q, k, v, o, gate, up, down].into_iter().chain(norms).cloned().collect()
    }

    fn loss(&self, ids: &Tensor, targets: &[i64], layout: &Layout) -> Result<Tensor> {
        let x = autograd::embedding(&self.table, ids)?;
        let x = (&x + self.attend(&x, layout)?)?;
        let x = (&x + self.feed_forward(&x)?)?;
        let hidden = autograd::rms_norm(&x, &self.final_norm, NORM)?;
        autograd::linear_cross_entropy(&hidden, &self.table, targets, None, Reduction::Mean)
    }

    fn attend(&self, x: &Tensor, layout: &Layout) -> Result<Tensor> {
        let normed = autograd::rms_norm(x, &self.attention_norm, NORM)?;
        let heads =
            |weight, heads| autograd::linear(&normed, weight)?.reshape(((), heads, HEAD_DIM));
        let turned = |x: Tensor| autograd::rope(&x, &layout.cos, &layout.sin);
        let (q, k) = (turned(heads(&self.q, HEADS)?)?, turned(heads(&self.k, KV_HEADS)?)?);
        let v = heads(&self.v, KV_HEADS)?;
        let scale = 1.0 / (HEAD_DIM as f64).sqrt();
        let params = attention::Params { scale, softcap: None, window: None };
        let y = autograd::attention(&q, &k, &v, &layout.cu_seqlens, params)?;
        autograd::linear(&y.flatten_from(1)?, &self.o)
    }

    fn feed_forward(&self, x: &Tensor) -> Result<Tensor> {
        let normed = autograd::rms_norm(x, &self.feed_forward_norm, NORM)?;
        let gate = autograd::linear(&normed, &self.gate)?;
        let up = autograd::linear(&normed, &self.up)?;
        autograd::linear(&autograd::gated(&gate, &up, Activation::Silu)?, &self.down)
    }
}

/// Rotary angles of positions that begin again with every sequence.
fn layout(lengths: &[u32]) -> Result<Layout> {
    let mut cu_seqlens = vec![0];
    let mut angles = Vec::new();
    for length in lengths {
        cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + length);
        for position in 0..*length {
            let frequency = |pair: usize| 1e4f32.powf(-2.0 * pair as f32 / HEAD_DIM as f32);
            angles.extend((0..HEAD_DIM / 2).map(|pair| position as f32 * frequency(pair)));
        }
    }
    let angles = Tensor::from_vec(angles, ((), HEAD_DIM / 2), &Device::Cpu)?;
    Ok(Layout { cu_seqlens, cos: angles.cos()?, sin: angles.sin()? })
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let layout = layout(&[40, 24])?;
    let ids: Vec<u32> = (0..64).map(|token| token * 29 % 64).collect();
    let targets: Vec<i64> = ids.iter().map(|id| i64::from((id + 29) % 64)).collect();
    let ids = Tensor::from_vec(ids, 64, &Device::Cpu)?;

    let model = Model::new()?;
    let settings = ParamsAdamW { lr: 0.01, ..ParamsAdamW::default() };
    let mut optimizer = AdamW::new(model.vars(), settings)?;
    let (mut first, mut last) = (None, 0.0);
    for step in 1..=60 {
        let loss = model.loss(&ids, &targets, &layout)?;
        last = loss.to_scalar::<f32>()?;
        first.get_or_insert(last);
        optimizer.backward_step(&loss)?;
        if step % 10 == 0 {
            writeln!(std::io::stdout(), "step {step}: loss {last:.4}")?;
        }
    }
    if last > first.unwrap_or(0.0) / 4.0 {
        return Err(format!("the loss went from {first:?} to {last} only").into());
    }
    Ok(())
}
