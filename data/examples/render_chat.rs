//! `render_chat MODEL_FOLDER`: renders a small conversation and shows what would be trained.

use std::io::Write;

use chandler_data::{DataOptions, TextPipeline};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).ok_or("which model folder?")?;
    let pipeline = TextPipeline::open(folder.as_ref())?;
    let line = r#"{"messages": [{"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "Four."}]}"#;
    let example = pipeline.example(line, &DataOptions::default())?;
    let trained: Vec<u32> = example.trained_ids().collect();
    let mut out = std::io::stdout();
    writeln!(out, "{}", example.text)?;
    writeln!(
        out,
        "{} tokens, of which are trained: {:?}",
        example.input_ids.len(),
        pipeline.tokenizer().decode(&trained, false)?
    )?;
    Ok(())
}
