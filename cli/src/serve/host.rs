//! The thread that owns the model: loads it, answers, lets go of it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use chandler_evaluator::{EvalError, EvalScope, GenerateOptions};
use chandler_model::CausalLm;
use chandler_vram::{Bytes, Category, Entry, Ledger, Phase};

use super::answer::Answers;
use super::batch::{are_gone, beside, extent, needed, options_of, prompts, refuse};
use super::desk::{Desk, Side, Turn};
use super::offer::Opened;
use super::reader::Read;
use super::refusal::Refusal;
use crate::config::Config;
use crate::engine::{
    Decision, EngineError, bytes_of_answers, decide, dtype, end_where_gpu_is_lost,
    give_memory_back, keep_memory_limit, load_model, memory_room, seen_on_gpu, stop_ids,
};
use crate::failure::in_one_line;

/// Is told where memory did not suffice, now and again: the log has each time.
pub(crate) type Tell = Arc<dyn Fn(&str) + Send + Sync>;

/// How often somebody is told that memory does not suffice. Each request may find that out anew, and
/// what is told may go on to a telephone.
const TELL_EVERY: Duration = Duration::from_secs(600);

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
    /// When it was told last.
    pub(super) told: Cell<Option<Instant>>,
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
                        desk.is_done(Side::Host);
                        refuse(&reads, &Refusal::defect());
                    }
                    if desk.load().0 == 0 {
                        give_memory_back();
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
        give_memory_back();
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
            desk.is_done(Side::Host);
            refuse(reads, &refusal);
            return;
        }
        let Some(loaded) = &self.loaded else { return };
        // Those that do not fit beside one another are answered one by one.
        let fits =
            memory_room(&self.config).is_none_or(|room| room >= needed(&loaded.model, reads));
        let mut groups = reads.chunks(if fits { reads.len() } else { 1 }).peekable();
        while let Some(group) = groups.next() {
            let is_last = groups.peek().is_none();
            let done = || {
                if is_last {
                    desk.is_done(Side::Host);
                }
            };
            // Loading, and the groups before this one, may have taken long.
            if are_gone(group) {
                continue;
            }
            let answered = if desk.cuts_off() {
                Err(Refusal::cut_off())
            } else {
                self.generate(loaded, group, desk, &done)
            };
            if let Err(refusal) = answered {
                done();
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

    /// Generates within a scope of its own, so that nothing of it stays. `done` is called before the
    /// last word is said.
    fn generate(
        &self,
        loaded: &Loaded,
        reads: &[Read],
        desk: &Desk<Read>,
        done: &dyn Fn(),
    ) -> Result<(), Refusal> {
        let options = self.admitted(loaded, reads)?;
        let began = Instant::now();
        let prompts = prompts(reads);
        let mut answers = Answers::new(reads, &options, &loaded.stop_ids);
        let stop = || desk.cuts_off() || are_gone(reads);
        let mut scope = EvalScope::open(&loaded.model, &self.ledger).stopped_by(&stop);
        let generated = scope.generate(&prompts, &options, &mut |row, ids| answers.heard(row, ids));
        if let Some((shrunk, shortage)) = scope.shrunk().zip(scope.shortage()) {
            self.was_short(&format!(
                "out of memory in an answer: {}; cut to {} prompts side by side and {} new tokens",
                seen_on_gpu(shortage),
                shrunk.batch_size,
                shrunk.max_new_tokens
            ));
        }
        if let Err(error) = scope.close() {
            tracing::error!("{error}");
        }
        let (tokens, seconds) = (answers.tokens(), began.elapsed().as_secs_f64());
        tracing::debug!("{tokens} tokens in {} answers in {seconds:.3} s", prompts.len());
        match generated {
            Ok(_) => {
                done();
                answers.finish();
                Ok(())
            }
            Err(EvalError::Stopped) => Err(Refusal::cut_off()),
            Err(error) => Err(self.given_up(error)),
        }
    }

    /// Memory is what somebody can do something about; everything else is for the log.
    fn given_up(&self, error: EvalError) -> Refusal {
        if let EvalError::OutOfMemory(shortage) = &error {
            let why = seen_on_gpu(shortage);
            self.was_short(&format!("an answer was given up: {why}"));
            return Refusal::of(&error.into());
        }
        let error = EngineError::from(error);
        end_where_gpu_is_lost(&error);
        tracing::error!("an answer was given up: {}", in_one_line(&error));
        Refusal::of(&error)
    }

    /// Logs that memory did not suffice, and tells it where that was not done lately.
    fn was_short(&self, words: &str) {
        tracing::warn!("{words}");
        if self.told.get().is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told.set(Some(Instant::now()));
            (self.tell)(words);
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
                words.inspect(|words| self.was_short(&format!("for an answer, {words}")));
                Ok(options)
            }
            Decision::Postpone(_) | Decision::Stop(_) => {
                let refusal =
                    Refusal::no_room("the answer", needed(&wanted), room.unwrap_or_default());
                self.was_short(&refusal.message);
                Err(refusal)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use chandler_vram::Shortage;

    use super::*;

    #[test]
    fn a_shortage_is_told_once_in_a_while_and_other_errors_are_not() {
        let told = Arc::new(Mutex::new(vec![]));
        let heard = Arc::clone(&told);
        let host = Host {
            config: Config::default(),
            ledger: Ledger::new(),
            tell: Arc::new(move |words| heard.lock().unwrap().push(words.to_owned())),
            told: Cell::default(),
            idle: None,
            loaded: None,
        };
        assert_eq!(host.given_up(EvalError::EmptyPrompt { index: 0 }).status, 500);
        assert!(told.lock().unwrap().is_empty());
        for _ in 0..3 {
            let lacking = Shortage::in_heap(Some(5), host.ledger.snapshot());
            assert_eq!(host.given_up(EvalError::OutOfMemory(Box::new(lacking))).status, 503);
            host.was_short("for an answer, one prompt at a time");
        }
        let told = told.lock().unwrap();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("an answer was given up"), "{told:?}");
    }
}
