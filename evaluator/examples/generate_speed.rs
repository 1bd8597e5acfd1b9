//! Tokens per second of greedy generation, beside the rate at which the machine reads memory.
//!
//! `cargo run --release -p chandler-evaluator --example generate_speed -- [small|0.6b] [batch]
//! [bf16|f32] [new tokens] [prompt tokens]`
use std::io::Write;
use std::time::Instant;

use candle_core::{DType, Device};
use chandler_evaluator::{EvalScope, GenerateOptions};
use chandler_model::{CausalLm, KvCache, ModelConfig};
use chandler_vram::Ledger;
use rayon::prelude::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |index: usize, default: &str| args.get(index).map_or(default, |s| s).to_owned();
    let (name, batch): (String, usize) = (arg(0, "small"), arg(1, "8").parse()?);
    let dtype = if arg(2, "bf16") == "f32" { DType::F32 } else { DType::BF16 };
    let (new, prompt): (usize, usize) = (arg(3, "128").parse()?, arg(4, "32").parse()?);
    let config = config(&name)?;
    let model = CausalLm::fresh(config, 1, dtype, &Device::Cpu)?;
    let id = |row: usize, i: usize| ((row * 7919 + i * 104_729) % 30_000) as u32;
    let prompts: Vec<Vec<u32>> =
        (0..batch).map(|row| (0..prompt).map(|i| id(row, i)).collect()).collect();
    let time = |new_tokens| -> Result<f64, Box<dyn std::error::Error>> {
        let options = GenerateOptions {
            max_new_tokens: new_tokens,
            batch_size: batch,
            ..GenerateOptions::default()
        };
        let mut scope = EvalScope::open(&model, &Ledger::new());
        let start = Instant::now();
        scope.generate(&prompts, &options, &mut |_, _| None)?;
        Ok(start.elapsed().as_secs_f64())
    };
    let embedded = model.config().vocab_size * model.config().hidden_size;
    let embedded = if model.config().tie_word_embeddings { 0 } else { embedded };
    let params: usize = model.params().iter().map(|(_, param)| param.value.elem_count()).sum();
    let weights = (params - embedded) * dtype.size_in_bytes();
    let cache = KvCache::bytes_needed(model.config(), batch, prompt + new / 2, dtype);
    for _ in 0..3 {
        let read = read_rate();
        let (first, all) = (time(1)?, time(new)?);
        let step = (all - first) / (new - 1) as f64;
        let rate = (weights + cache) as f64 / step / 1e9;
        writeln!(
            std::io::stdout(),
            "{name} {dtype:?} batch {batch}: prefill {:.0} ms, step {:.2} ms, {:.1} tokens/s \
             ({:.1} with prefill); reads {rate:.1} of {read:.1} GB/s: {:.0} %",
            1e3 * first,
            1e3 * step,
            batch as f64 / step,
            (batch * new) as f64 / all,
            100.0 * rate / read,
        )?;
    }
    Ok(())
}

/// GB/s at which all threads read a gigabyte.
fn read_rate() -> f64 {
    let buffer = vec![1u64; 1 << 27];
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let start = Instant::now();
        let sum: u64 = buffer.par_chunks(1 << 16).map(folded).reduce(|| 0, |a, b| a ^ b);
        std::hint::black_box(sum);
        best = best.min(start.elapsed().as_secs_f64());
    }
    (8 * buffer.len()) as f64 / best / 1e9
}

fn folded(values: &[u64]) -> u64 {
    let mut lanes = [0; 32];
    for values in values.as_chunks::<32>().0 {
        lanes.iter_mut().zip(values).for_each(|(lane, value)| *lane ^= value);
    }
    lanes.iter().fold(0, |a, b| a ^ b)
}

fn config(name: &str) -> Result<ModelConfig, Box<dyn std::error::Error>> {
    let [hidden, layers, heads, kv_heads, head_dim, feed_forward, vocab] = match name {
        "0.6b" => [1024, 28, 16, 8, 128, 3072, 151_936],
        "small" => [512, 8, 8, 4, 64, 1536, 32_768],
        other => return Err(format!("no shape called {other}").into()),
    };
    let config = serde_json::json!({
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": vocab,
        "hidden_size": hidden, "intermediate_size": feed_forward, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
        "max_position_embeddings": 4096, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": true,
    });
    Ok(ModelConfig::from_json(config, "config.json".as_ref())?)
}
