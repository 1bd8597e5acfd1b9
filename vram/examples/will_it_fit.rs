//! Says whether Qwen3-0.6B can be trained within so much memory, and with how many kept blocks:
//! `cargo run -p chandler-vram --example will_it_fit -- 24GiB`.

use std::io::Write;

use chandler_vram::{Bytes, Choice, ModelShape, Passing, TrainShape, choose, plan};

const QWEN3: ModelShape = ModelShape {
    params: 596_049_920,
    trainable_params: 596_049_920,
    trainable_vector_params: 65_536,
    trainable_head_params: 0,
    trainable_attention_params: 6_292_736,
    trainable_feed_forward_params: 9_438_208,
    layers: 28,
    hidden: 1024,
    intermediate: 3072,
    query_width: 2048,
    kv_width: 1024,
    head_dim: 128,
    vocab: 151_936,
    element_bytes: 2,
    post_norms: false,
    qk_norms: true,
    sliding_angles: false,
    capped_logits: false,
    adapter_rank: 0,
};

const SEQ_LEN: u64 = 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Bytes(budget) = std::env::args().nth(1).as_deref().unwrap_or("24GiB").parse()?;
    let plan_of = |choice: &Choice| {
        let train = TrainShape {
            micro_batch_tokens: choice.micro_batch_rows * SEQ_LEN,
            micro_batches: choice.micro_batches,
            kept_blocks: choice.kept_blocks,
            master_weights: true,
            moment_bytes_per_256: 2048,
            optimizer_in_backward: false,
            // What the ops' buffers take is for the engine to say; most of it is the loss's.
            workspace: 64 << 20,
            passing: Passing::NONE,
        };
        plan(&QWEN3, &train, None, Some(budget))
    };
    let whole = Choice { kept_blocks: QWEN3.layers, micro_batch_rows: 8, micro_batches: 1 };
    let chosen = choose(whole, Some(SEQ_LEN), budget, &mut |choice| plan_of(choice).train_peak);
    let mut out = std::io::stdout();
    match chosen {
        Ok((choice, _)) => writeln!(
            out,
            "{}\n8 rows of {SEQ_LEN} tokens: {} x {} with {} of {} blocks kept",
            plan_of(&choice),
            choice.micro_batch_rows,
            choice.micro_batches,
            choice.kept_blocks,
            QWEN3.layers
        )?,
        Err((_, least)) => writeln!(out, "at least {} are needed", Bytes(least))?,
    }
    Ok(())
}
