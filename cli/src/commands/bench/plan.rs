//! `chandler bench plan`: what the plan says beside what is allocated, for models and settings drawn
//! at random.

use candle_core::Device;
use chandler_data::Row;
use chandler_evaluator::{EvalScope, GenerateOptions};
use chandler_model::CausalLm;
use chandler_trainer::Trainer;
use chandler_vram::{Bytes, Choice, Ledger, PoolReading, choose, counting, plan};
use clap::Args;

use super::draws::{Dice, Draw, STEPS, Sizes};
use super::shape::Shape;
use super::{fresh, median, place, token_ids};
use crate::config::Place;
use crate::engine::{
    EngineError, answers_shape, buffers, device_pool, give_memory_back, measure_memory_anew,
    model_shape, open_device, train_shape,
};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Args)]
pub(in crate::commands) struct PlanArgs {
    /// Draws, beside a few of the shape `small`
    #[arg(long, value_name = "N", default_value_t = 60)]
    draws: usize,
    /// What is drawn depends on this alone
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// Models of a few MiB, and none of the shape `small`
    #[arg(long)]
    little: bool,
    /// Where: auto, cpu, cuda or such as cuda:1
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = place)]
    device: Place,
}

/// What was planned and what was measured, in bytes.
#[derive(Debug, Clone, Copy)]
struct Pair {
    planned: u64,
    measured: u64,
}

/// A draw under a budget.
#[derive(Debug, Clone, Copy)]
struct UnderBudget {
    budget: u64,
    choice: Choice,
    pair: Pair,
    /// What one more kept block would have needed, where there is one.
    next: Option<u64>,
}

/// Everything that was found of a draw.
struct Found {
    draw: Draw,
    train: Pair,
    eval: Pair,
    budget: Option<UnderBudget>,
}

/// Largest errors that are accepted, as a share of what was measured: at the median, above, below.
const BOUNDS: [f64; 3] = [0.02, 0.05, 0.01];

pub(super) fn run(args: &PlanArgs) -> Result<Exit, Failure> {
    let device = open_device(args.device, None)?;
    let mut dice = Dice::new(args.seed);
    let sizes = if args.little { Sizes::LITTLE } else { Sizes::USUAL };
    let mut draws: Vec<Draw> =
        (0..args.draws).map(|index| Draw::new(&mut dice, &sizes, index)).collect();
    if !args.little {
        draws.extend(Draw::of_small(Shape::Small.config()?.raw));
    }
    let mut all = Vec::with_capacity(draws.len());
    for draw in draws {
        all.push(find(draw, &device)?);
    }
    output::print(&tables(&all))?;
    match complaints(&all) {
        text if text.is_empty() => Ok(Exit::Ok),
        text => Err(Failure::new(
            Exit::Error,
            anyhow::anyhow!("the plan is off:\n{text}"),
            Some("report this with the table above".to_owned()),
        )),
    }
}

fn find(draw: Draw, device: &Device) -> Result<Found, Failure> {
    let train = train(&draw, device)?;
    let eval = evaluate(&draw, device)?;
    let budget = under_budget(&draw, device)?;
    Ok(Found { draw, train, eval, budget })
}

impl Pair {
    /// Above 0 where too much was planned.
    fn error(self) -> f64 {
        self.planned as f64 / self.measured as f64 - 1.0
    }
}

/// What `run` allocates at most; what is there before does not count, and the ops' pool is empty.
fn measure(device: &Device, run: impl FnOnce() -> Result<(), Failure>) -> Result<u64, Failure> {
    give_memory_back();
    measure_memory_anew()?;
    let used = |of_pool: fn(PoolReading) -> u64, of_heap: fn() -> Option<u64>| match device {
        Device::Cpu => of_heap(),
        _ => device_pool().map(of_pool),
    };
    let before = used(|pool| pool.used, counting::live_bytes).unwrap_or(0);
    run()?;
    let peak = used(|pool| pool.used_high, counting::high_water_bytes).unwrap_or(0);
    Ok(peak.saturating_sub(before))
}

fn model(draw: &Draw, device: &Device) -> Result<CausalLm, Failure> {
    Ok(fresh(draw.config()?, draw.precision, draw.mode, device).map_err(EngineError::Model)?)
}

fn rows(draw: &Draw, vocab_size: usize) -> Vec<Row> {
    let row = |number: usize| {
        let input_ids = token_ids(vocab_size, number as u64, draw.row_tokens());
        let labels = input_ids.iter().map(|id| i64::from(*id)).collect();
        let seq_lengths = draw.documents.iter().map(|length| *length as u32).collect();
        Row { input_ids, labels, seq_lengths, examples: draw.documents.len() as u32 }
    };
    (0..draw.batch_size * draw.micro_batches * STEPS as usize).map(row).collect()
}

/// The plan's peak of training.
fn planned(draw: &Draw, model: &CausalLm) -> u64 {
    let documents = draw.documents.repeat(draw.batch_size);
    let mut pool = buffers(!model.device().is_cpu());
    let train = train_shape(model, &draw.settings(), &documents, &mut pool);
    plan(&model_shape(model), &train, None, None).train_peak
}

fn train(draw: &Draw, device: &Device) -> Result<Pair, Failure> {
    let model = model(draw, device)?;
    let rows = rows(draw, model.config().vocab_size);
    let planned = planned(draw, &model);
    let weights = model.params().bytes() as u64;
    let measured = measure(device, || {
        let ledger = Ledger::new();
        let mut trainer =
            Trainer::new(model, &rows, draw.settings(), &ledger).map_err(EngineError::Train)?;
        for _ in 0..STEPS {
            trainer.step().map_err(EngineError::Train)?;
        }
        Ok(())
    })?;
    Ok(Pair { planned, measured: measured + weights })
}

fn evaluate(draw: &Draw, device: &Device) -> Result<Pair, Failure> {
    let model = model(draw, device)?;
    let vocab = model.config().vocab_size;
    let [batch, prompt, new_tokens, scored] = draw.answers;
    let buffers = || buffers(!device.is_cpu());
    let mut pool = buffers();
    let shape = answers_shape(&model, batch, [prompt, new_tokens], scored, &mut pool);
    let documents = draw.documents.repeat(draw.batch_size);
    let train = train_shape(&model, &draw.settings(), &documents, &mut buffers());
    let plan = plan(&model_shape(&model), &train, Some(&shape), None);
    let weights = model.params().bytes() as u64;
    let prompts: Vec<Vec<u32>> =
        (0..batch).map(|row| token_ids(vocab, row as u64, prompt)).collect();
    let row = Row {
        input_ids: token_ids(vocab, 99, scored),
        labels: token_ids(vocab, 99, scored).iter().map(|id| i64::from(*id)).collect(),
        seq_lengths: vec![scored as u32],
        examples: 1,
    };
    let options =
        GenerateOptions { max_new_tokens: new_tokens, batch_size: batch, ..Default::default() };
    let measured = measure(device, || {
        let mut scope = EvalScope::open(&model, &Ledger::new());
        // More than once: the second time finds the pool as the first left it, and whether every
        // thread found work in something so short is chance.
        for _ in 0..3 {
            scope.score([row.clone(), row.clone()].map(Ok::<_, EngineError>))?;
            scope.generate(&prompts, &options, &mut |_, _| None).map_err(EngineError::Eval)?;
        }
        Ok(scope.close().map_err(EngineError::Eval)?)
    })?;
    let planned = plan.eval_peak - plan.resident + weights;
    Ok(Pair { planned, measured: measured + weights })
}

/// Trains within a budget that lies between the least and the most that the draw could need; `None`
/// where nothing fits into it.
fn under_budget(draw: &Draw, device: &Device) -> Result<Option<UnderBudget>, Failure> {
    let model = model(draw, device)?;
    let layers = model.num_blocks() as u64;
    let peak = |choice: &Choice| planned(&draw.with(choice), &model);
    let whole = Choice {
        kept_blocks: layers,
        micro_batch_rows: draw.batch_size as u64,
        micro_batches: draw.micro_batches as u64,
    };
    let least = Choice {
        kept_blocks: 0,
        micro_batch_rows: 1,
        micro_batches: whole.micro_batches * whole.micro_batch_rows,
    };
    let least = if draw.optimizer_in_backward { Choice { kept_blocks: 0, ..whole } } else { least };
    let (low, high) = (peak(&least), peak(&whole));
    let budget = low + (high.saturating_sub(low) as f64 * draw.budget) as u64;
    let tokens = draw.documents.iter().sum::<usize>() as u64;
    let row_tokens = (!draw.optimizer_in_backward).then_some(tokens);
    let Ok((choice, _)) = choose(whole, row_tokens, budget, &mut |c| peak(c)) else {
        return Ok(None);
    };
    let more = Choice { kept_blocks: choice.kept_blocks + 1, ..choice };
    let next = (choice.kept_blocks < layers).then(|| peak(&more));
    drop(model);
    Ok(Some(UnderBudget { budget, choice, pair: train(&draw.with(&choice), device)?, next }))
}

impl Draw {
    /// The same global batch in another way.
    fn with(&self, choice: &Choice) -> Self {
        Self {
            kept_blocks: choice.kept_blocks as usize,
            batch_size: choice.micro_batch_rows as usize,
            micro_batches: choice.micro_batches as usize,
            ..self.clone()
        }
    }
}

fn errors(all: &[Found], of: fn(&Found) -> Pair) -> [f64; 3] {
    let errors: Vec<f64> = all.iter().map(|found| of(found).error()).collect();
    let absolute: Vec<f64> = errors.iter().map(|error| error.abs()).collect();
    let largest = errors.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let smallest = errors.iter().copied().fold(f64::INFINITY, f64::min);
    [median(&absolute), largest, -smallest]
}

impl UnderBudget {
    /// What of the budget was used.
    fn used(self) -> f64 {
        self.pair.measured as f64 / self.budget as f64
    }

    /// Whether one more kept block is a small step.
    fn is_fine(self) -> bool {
        self.next.is_some_and(|next| next as f64 <= 1.08 * self.pair.planned as f64)
    }

    fn is_kept(self) -> bool {
        self.pair.measured <= self.budget && (!self.is_fine() || self.used() >= 0.9)
    }
}

/// What is beyond its bounds; nothing where all is well.
fn complaints(all: &[Found]) -> String {
    let mut text = String::new();
    for (name, errors) in [
        ("training", errors(all, |found| found.train)),
        ("evaluation", errors(all, |found| found.eval)),
    ] {
        let words = ["the median error", "the largest error", "what is missing at most"];
        for ((error, bound), what) in errors.iter().zip(BOUNDS).zip(words) {
            if *error > bound {
                let [error, bound] = [100.0 * error, 100.0 * bound];
                text.push_str(&format!("{name}: {what} is {error:.2} %, not {bound} %\n"));
            }
        }
    }
    for found in all.iter().filter(|found| found.budget.is_some_and(|under| !under.is_kept())) {
        text.push_str(&format!("budget: {}\n", found.draw.describe()));
    }
    text
}

fn tables(all: &[Found]) -> String {
    let mib = |bytes: u64| format!("{:.2}", bytes as f64 / (1 << 20) as f64);
    let percent = |share: f64| format!("{:+.2} %", 100.0 * share);
    let cells = |pair: Pair| [mib(pair.planned), mib(pair.measured), percent(pair.error())];
    let mut text = String::from(
        "| | model | rows of a step | planned MiB | measured MiB | error | answers, prompt, new, \
         scored | planned | measured | error | budget MiB | way | used |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for (number, found) in all.iter().enumerate() {
        let answers: Vec<String> = found.draw.answers.iter().map(usize::to_string).collect();
        let mut row =
            vec![(number + 1).to_string(), found.draw.describe(), found.draw.describe_rows()];
        row.extend(cells(found.train));
        row.push(answers.join(", "));
        row.extend(cells(found.eval));
        if let Some(under) = found.budget {
            let Choice { kept_blocks, micro_batch_rows, micro_batches } = under.choice;
            row.push(mib(under.budget));
            row.push(format!("{micro_batches} x {micro_batch_rows}, kept {kept_blocks}"));
            row.push(format!("{:.1} %", 100.0 * under.used()));
        } else {
            row.extend(["", "", ""].map(str::to_owned));
        }
        text.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    text.push('\n');
    text.push_str(&summary("training", errors(all, |found| found.train)));
    text.push_str(&summary("evaluation", errors(all, |found| found.eval)));
    let under: Vec<UnderBudget> = all.iter().filter_map(|found| found.budget).collect();
    let within = under.iter().filter(|under| under.pair.measured <= under.budget).count();
    let fine: Vec<f64> = under.iter().filter(|u| u.is_fine()).map(|u| u.used()).collect();
    let least = fine.iter().copied().fold(f64::INFINITY, f64::min);
    text.push_str(&format!(
        "budgets: {within} of {} runs within theirs; of the {} that one more kept block of at most \
         8 % would have passed, the least used {:.1} % of it\n",
        under.len(),
        fine.len(),
        100.0 * least,
    ));
    let largest = all.iter().map(|found| found.train.measured).max().unwrap_or(0);
    text.push_str(&format!("largest run: {}\n", Bytes(largest)));
    text
}

fn summary(name: &str, [median, most, least]: [f64; 3]) -> String {
    format!(
        "{name}: median error {:.2} %, at most {:+.2} %, at least {:+.2} %\n",
        100.0 * median,
        100.0 * most,
        -100.0 * least
    )
}
