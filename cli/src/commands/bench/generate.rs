//! `chandler bench generate`: greedy answers to random prompts.

use std::time::Instant;

use chandler_evaluator::{EvalScope, GenerateOptions};
use chandler_model::CausalLm;
use chandler_trainer::TrainSettings;
use chandler_vram::{Ledger, counting, plan};
use clap::Args;
use serde_json::json;

use super::flops::generate_flops;
use super::process::{self, ProcessStat};
use super::report::{self, About, Measured};
use super::{ModelArgs, profiled, shape, token_ids};
use crate::engine::{EngineError, answers_shape, buffers, model_shape, train_shape};
use crate::exit::Exit;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(in crate::commands) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = super::at_least_one)]
    prompt_len: usize,
    /// Tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = super::at_least_one)]
    max_new_tokens: usize,
    /// Prompts side by side
    #[arg(long, value_name = "B", default_value_t = 1, value_parser = super::at_least_one)]
    batch_size: usize,
    /// How often that is measured, after a short answer that is not
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = super::at_least_one)]
    steps: usize,
    /// End with one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn generate(args: &GenerateArgs) -> Result<Exit, Failure> {
    const WARM_UP_TOKENS: usize = 4;
    let model = args.model.build()?;
    let seconds_to_model = process::age().map(|age| age.as_secs_f64());
    counting::reset_high_water();
    let ids = token_ids(model.config().vocab_size, 0, args.batch_size * args.prompt_len);
    let prompts: Vec<Vec<u32>> = ids.chunks(args.prompt_len).map(<[u32]>::to_vec).collect();

    answer(&model, &prompts, WARM_UP_TOKENS)?;
    let seconds_to_first_step = process::age().map(|age| age.as_secs_f64());
    let before = ProcessStat::read();
    let mut seconds = Vec::with_capacity(args.steps);
    let ((), ops) = profiled(|| {
        for _ in 0..args.steps {
            let started = Instant::now();
            answer(&model, &prompts, args.max_new_tokens)?;
            seconds.push(started.elapsed().as_secs_f64());
        }
        Ok(())
    })?;
    let flops = generate_flops(&model, args.prompt_len, args.max_new_tokens);
    let measured = Measured {
        tokens: args.batch_size * args.max_new_tokens,
        flops: flops * args.batch_size as f64,
        seconds,
        ops,
        before,
        after: ProcessStat::read(),
    };
    let about = About {
        command: "generate",
        shape: shape::describe(&args.model.shape, &model),
        settings: json!({
            "dtype": args.model.dtype,
            "mode": args.model.mode,
            "prompt_len": args.prompt_len,
            "max_new_tokens": args.max_new_tokens,
            "batch_size": args.batch_size,
            "steps": args.steps,
        }),
        planned_peak_bytes: args.planned_bytes(&model),
        seconds_to_model,
        seconds_to_first_step,
        losses: vec![],
    };
    report::print(about, &measured, &args.model, args.json)?;
    Ok(Exit::Ok)
}

fn answer(model: &CausalLm, prompts: &[Vec<u32>], max_new_tokens: usize) -> Result<(), Failure> {
    let options =
        GenerateOptions { max_new_tokens, batch_size: prompts.len(), ..GenerateOptions::default() };
    let mut scope = EvalScope::open(model, &Ledger::new());
    let answers = scope.generate(prompts, &options, &mut |_, _| None).map_err(EngineError::Eval)?;
    scope.close().map_err(EngineError::Eval)?;
    debug_assert!(answers.iter().all(|answer| answer.new_ids.len() == max_new_tokens));
    Ok(())
}

impl GenerateArgs {
    /// Weights, cache, and what an evaluation works with.
    fn planned_bytes(&self, model: &CausalLm) -> u64 {
        let (settings, length) = (TrainSettings::default(), self.prompt_len);
        let pool = || buffers(!model.device().is_cpu());
        let train = train_shape(model, &settings, &[length], &mut pool());
        let tokens = [length, self.max_new_tokens];
        let eval = answers_shape(model, self.batch_size, tokens, 0, &mut pool());
        let plan = plan(&model_shape(model), &train, Some(&eval), None);
        // Nothing is trained: of what is always there, the weights alone are.
        plan.eval_peak - plan.resident + model.params().bytes() as u64
    }
}
