//! The thread that owns the model: loads it, answers, lets go of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use chandler_evaluator::{EvalError, EvalScope, GenerateOptions, SamplingOptions};
use chandler_model::CausalLm;
use chandler_vram::{Bytes, Category, Entry, Ledger, Phase};

use super::answer::Answers;
use super::desk::{Desk, Side, Turn};
use super::offer::Opened;
use super::reader::Read;
use super::refusal::Refusal;
use super::request::MOST_ROWS;
use crate::config::Config;
use crate::engine::{
    Decision, EngineError, bytes_of_answers, decide, dtype, keep_memory_limit, load_model,
    memory_room, stop_ids,
};
use crate::failure::in_one_line;
use crate::heap;

/// Is told where memory did not suffice.
pub(crate) type Tell = Arc<dyn Fn(&str) + Send + Sync>;

/// A model in memory, and its line in the ledger.
pub(super) struct Loaded {
    opened: Arc<Opened>,
    model: CausalLm,
    stop_ids: Vec<u32>,
    _weights: Entry,
}

/// Why a model is not loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("the model needs {} and there are {}", Bytes(*needed), Bytes(*room))]
    NoRoom { needed: u64, room: u64 },
    #[error(transparent)]
    Engine(Box<EngineError>),
    #[error("cannot start a thread")]
    Thread {
        #[source]
        source: std::io::Error,
    },
}

impl From<EngineError> for LoadError {
    fn from(error: EngineError) -> Self {
        Self::Engine(Box::new(error))
    }
}

impl Loaded {
    /// Loads a model where there is room for it.
    pub(super) fn load(
        config: &Config,
        ledger: &Ledger,
        opened: &Arc<Opened>,
    ) -> Result<Self, LoadError> {
        keep_memory_limit(config);
        let hollow = CausalLm::hollow(opened.shape.clone(), dtype(config), &Device::Cpu);
        let needed = hollow.map_err(EngineError::from)?.params().bytes() as u64;
        if let Some(room) = memory_room(config).filter(|room| needed > *room) {
            return Err(LoadError::NoRoom { needed, room });
        }
        let began = Instant::now();
        let offer = &opened.offer;
        let model = load_model(config, &offer.folder, offer.adapter.as_deref(), None)?;
        let stop_ids = stop_ids(&offer.folder, &model, &opened.tokenizer)?;
        let bytes = model.params().bytes() as u64;
        let weights = ledger.enter(Category::Weights, bytes);
        let seconds = began.elapsed().as_secs_f64();
        tracing::info!("{} is loaded: {} in {seconds:.1} s", offer.name, Bytes(bytes));
        Ok(Self { opened: Arc::clone(opened), model, stop_ids, _weights: weights })
    }
}

/// What the thread works with.
pub(super) struct Host {
    pub(super) config: Config,
    pub(super) ledger: Ledger,
    pub(super) tell: Tell,
    /// For how long a model stays that nobody asks; `None`: for ever.
    pub(super) idle: Option<Duration>,
    pub(super) loaded: Option<Loaded>,
}

impl Host {
    /// Answers until the desk ends.
    pub(super) fn work(mut self, desk: &Desk<Read>) {
        loop {
            match desk.next_read(self.idle) {
                Turn::End => return,
                Turn::LetGo => {
                    self.let_go();
                    desk.has_let_go(Side::Host);
                }
                // Whoever asked is gone.
                Turn::Work(read) if read.ticket.client.is_closed() => {}
                Turn::Work(read) => {
                    let mut reads = vec![read];
                    reads.extend(beside(desk, &reads[0]));
                    let answered = catch_unwind(AssertUnwindSafe(|| self.answer(&reads, desk)));
                    if answered.is_err() {
                        tracing::error!("an answer panicked: the model is loaded anew");
                        self.let_go();
                        refuse(&reads, &Refusal::defect());
                    }
                    if desk.load().0 == 0 {
                        heap::give_back();
                    }
                }
            }
        }
    }

    fn let_go(&mut self) {
        if let Some(loaded) = self.loaded.take() {
            tracing::info!("{} is let go of", loaded.opened.offer.name);
            drop(loaded);
        }
        heap::give_back();
    }

    fn answer(&mut self, reads: &[Read], desk: &Desk<Read>) {
        let Some(first) = reads.first() else { return };
        if let Err(error) = self.load(&first.opened) {
            let refusal = match &error {
                LoadError::NoRoom { needed, room } => Refusal::no_room("the model", *needed, *room),
                LoadError::Engine(error) => Refusal::of(error),
                LoadError::Thread { .. } => Refusal::defect(),
            };
            tracing::warn!("no answer: {}", in_one_line(&error));
            refuse(reads, &refusal);
            return;
        }
        let Some(loaded) = &self.loaded else { return };
        // Those that do not fit beside one another are answered one by one.
        let fits = memory_room(&self.config).is_none_or(|room| room >= needed(loaded, reads));
        let groups = if fits { reads.chunks(reads.len()) } else { reads.chunks(1) };
        for group in groups {
            if let Err(refusal) = self.generate(loaded, group, desk) {
                refuse(group, &refusal);
            }
        }
    }

    fn load(&mut self, opened: &Arc<Opened>) -> Result<(), LoadError> {
        if self.loaded.as_ref().is_some_and(|loaded| Arc::ptr_eq(&loaded.opened, opened)) {
            return Ok(());
        }
        self.let_go();
        self.ledger.begin(Phase::Eval);
        self.loaded = Some(Loaded::load(&self.config, &self.ledger, opened)?);
        Ok(())
    }

    /// Generates within a scope of its own, so that nothing of it stays.
    fn generate(&self, loaded: &Loaded, reads: &[Read], desk: &Desk<Read>) -> Result<(), Refusal> {
        let options = self.admitted(loaded, reads)?;
        let began = Instant::now();
        let prompts = prompts(reads);
        let mut answers = Answers::new(reads, &options, &loaded.stop_ids);
        let stop = || desk.cuts_off();
        let mut scope = EvalScope::open(&loaded.model, &self.ledger).stopped_by(&stop);
        let generated = scope.generate(&prompts, &options, &mut |row, ids| answers.heard(row, ids));
        if let Some(shrunk) = scope.shrunk() {
            (self.tell)(&format!(
                "out of memory in an answer: cut to {} prompts side by side and {} new tokens",
                shrunk.batch_size, shrunk.max_new_tokens
            ));
        }
        if let Err(error) = scope.close() {
            tracing::error!("{error}");
        }
        match generated {
            Ok(_) => {
                let (tokens, seconds) = (answers.finish(), began.elapsed().as_secs_f64());
                tracing::debug!("{tokens} tokens in {} answers in {seconds:.3} s", prompts.len());
                Ok(())
            }
            Err(EvalError::Stopped) => Err(Refusal::cut_off()),
            Err(error) => {
                let error = EngineError::from(error);
                (self.tell)(&format!("an answer was given up: {}", in_one_line(&error)));
                Err(Refusal::of(&error))
            }
        }
    }

    /// How the answers are generated, cut to the memory that there is where `memory.on_pressure`
    /// lets it.
    fn admitted(&self, loaded: &Loaded, reads: &[Read]) -> Result<GenerateOptions, Refusal> {
        let wanted = options_of(reads);
        let (rows, longest) = extent(reads);
        let needed =
            |options: &GenerateOptions| bytes_of_answers(&loaded.model, rows, longest, options);
        let room = memory_room(&self.config);
        match decide(self.config.memory.on_pressure, &wanted, rows, needed, room) {
            Decision::Evaluate(options, words) => {
                words.inspect(|words| (self.tell)(&format!("for an answer, {words}")));
                Ok(options)
            }
            Decision::Postpone(_) | Decision::Stop(_) => {
                let refusal =
                    Refusal::no_room("the answer", needed(&wanted), room.unwrap_or_default());
                (self.tell)(&refusal.message);
                Err(refusal)
            }
        }
    }
}

fn refuse(reads: &[Read], refusal: &Refusal) {
    for read in reads {
        read.ticket.refuse(refusal.clone());
    }
}

/// Those who wait and can be answered beside `first`, so that each gets what it would get alone:
/// greedy decoding with the same settings, which does not depend on the place in a batch.
fn beside(desk: &Desk<Read>, first: &Read) -> Vec<Read> {
    let alike = |read: &Read| {
        let seedless =
            |read: &Read| SamplingOptions { seed: 0, ..read.ticket.asked.sampling.clone() };
        let greedy = first.ticket.asked.sampling.temperature <= 0.0;
        greedy
            && Arc::ptr_eq(&read.opened, &first.opened)
            && seedless(read) == seedless(first)
            && !read.ticket.client.is_closed()
    };
    desk.take_beside(MOST_ROWS.saturating_sub(first.ticket.asked.rows()), |read, left| {
        Some(read.ticket.asked.rows()).filter(|rows| *rows <= left && alike(read))
    })
}

/// Every prompt as often as it is to be answered, in the order of the requests' choices.
fn prompts(reads: &[Read]) -> Vec<Vec<u32>> {
    let of = |read: &Read| -> Vec<Vec<u32>> {
        let choices = read.ticket.asked.choices;
        read.prompts.iter().flat_map(|prompt| vec![prompt.clone(); choices]).collect()
    };
    reads.iter().flat_map(of).collect()
}

/// Answers in all, and the tokens of the longest prompt.
fn extent(reads: &[Read]) -> (usize, usize) {
    let longest = reads.iter().flat_map(|read| &read.prompts).map(Vec::len).max();
    (reads.iter().map(|read| read.ticket.asked.rows()).sum(), longest.unwrap_or(0))
}

/// Ends of answers are watched for where they are told.
fn options_of(reads: &[Read]) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens: reads.iter().map(|read| read.max_new_tokens).max().unwrap_or(0),
        stop_ids: vec![],
        sampling: reads.first().map(|read| read.ticket.asked.sampling.clone()).unwrap_or_default(),
        batch_size: MOST_ROWS,
    }
}

fn needed(loaded: &Loaded, reads: &[Read]) -> u64 {
    let (rows, longest) = extent(reads);
    bytes_of_answers(&loaded.model, rows, longest, &options_of(reads))
}
