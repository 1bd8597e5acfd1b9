//! What memory is used for, entered by its owners.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

/// What bytes are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Weights that the model computes with.
    Weights,
    /// f32 copies of weights that are computed with in a narrower type.
    MasterWeights,
    /// Gradients.
    Gradients,
    /// Moments of the optimizer.
    OptimizerState,
    /// What blocks keep between their forward and their backward pass.
    Activations,
    /// Keys and values of an evaluation.
    KvCache,
    /// Rows of tokens.
    Data,
    /// Scratch memory.
    Workspace,
    /// The copy from which a checkpoint is written while training goes on.
    Checkpoint,
    /// What the driver of a GPU takes for the process.
    Context,
}

impl Category {
    /// Every category.
    pub const ALL: [Category; 10] = [
        Self::Weights,
        Self::MasterWeights,
        Self::Gradients,
        Self::OptimizerState,
        Self::Activations,
        Self::KvCache,
        Self::Data,
        Self::Workspace,
        Self::Checkpoint,
        Self::Context,
    ];

    /// Its name in plans, logs and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::MasterWeights => "master_weights",
            Self::Gradients => "gradients",
            Self::OptimizerState => "optimizer_state",
            Self::Activations => "activations",
            Self::KvCache => "kv_cache",
            Self::Data => "data",
            Self::Workspace => "workspace",
            Self::Checkpoint => "checkpoint",
            Self::Context => "context",
        }
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a run is doing, for marks of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Model and data are read.
    #[default]
    Load,
    /// Steps.
    Train,
    /// An evaluation.
    Eval,
    /// A checkpoint or a model is written.
    Save,
}

impl Phase {
    const ALL: [Phase; 4] = [Self::Load, Self::Train, Self::Eval, Self::Save];
}

/// Counters alone, so that no thread ever waits for another. Each is exact; beside a change that goes
/// on in another thread, two of them may be of either side of it.
#[derive(Debug, Default)]
struct Books {
    now: [AtomicU64; Category::ALL.len()],
    peak: [AtomicU64; Category::ALL.len()],
    /// The most since somebody took it.
    recent: [AtomicU64; Category::ALL.len()],
    total: AtomicU64,
    peak_total: AtomicU64,
    /// The index of the phase.
    phase: AtomicUsize,
    peak_of_phase: [AtomicU64; Phase::ALL.len()],
}

// Every counter stands for itself and none hands memory to another thread.
const ORDER: Ordering = Ordering::Relaxed;

impl Books {
    /// Takes in bytes of a category; the sums right after it are what the marks rise to.
    fn add(&self, category: Category, bytes: u64) {
        let index = category as usize;
        let now = self.now[index].fetch_add(bytes, ORDER) + bytes;
        self.peak[index].fetch_max(now, ORDER);
        self.recent[index].fetch_max(now, ORDER);
        let total = self.total.fetch_add(bytes, ORDER) + bytes;
        self.mark(total);
    }

    fn subtract(&self, category: Category, bytes: u64) {
        self.now[category as usize].fetch_sub(bytes, ORDER);
        self.total.fetch_sub(bytes, ORDER);
    }

    fn mark(&self, total: u64) {
        self.peak_total.fetch_max(total, ORDER);
        self.peak_of_phase[self.phase.load(ORDER)].fetch_max(total, ORDER);
    }
}

/// The books of one device. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    books: Arc<Books>,
}

/// Bytes that stand in the ledger as long as this lives: its owner keeps it beside the tensors.
#[derive(Debug)]
#[must_use = "the bytes leave the ledger when this is dropped"]
pub struct Entry {
    ledger: Ledger,
    category: Category,
    bytes: u64,
}

/// The ledger at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Every category that has ever had bytes.
    pub categories: Vec<CategoryBytes>,
    /// Bytes of all of them.
    pub total: u64,
    /// The most that all of them ever had at once.
    pub peak_total: u64,
    /// The most that all of them had in each phase that has been.
    pub phases: Vec<PhasePeak>,
}

/// The high-water mark of a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhasePeak {
    /// Which.
    pub phase: Phase,
    /// Bytes of all categories.
    pub peak: u64,
}

/// One line of a [`Snapshot`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CategoryBytes {
    /// What for.
    pub category: Category,
    /// Now.
    pub bytes: u64,
    /// The most there ever was.
    pub peak: u64,
}

impl Ledger {
    /// Empty books.
    pub fn new() -> Self {
        Self::default()
    }

    /// Enters bytes; they leave when the entry is dropped.
    pub fn enter(&self, category: Category, bytes: u64) -> Entry {
        let mut entry = Entry { ledger: self.clone(), category, bytes: 0 };
        entry.set(bytes);
        entry
    }

    /// Begins a phase: from now on it is this one's mark that rises.
    pub fn begin(&self, phase: Phase) {
        self.books.phase.store(phase as usize, ORDER);
        self.books.mark(self.total());
    }

    /// The most of each category since this was last asked for; what has had none is left out.
    pub fn take_recent(&self) -> BTreeMap<Category, u64> {
        let take = |category: Category| {
            let mark = &self.books.recent[category as usize];
            let most = mark.swap(self.bytes(category), ORDER);
            // What came between the reading and the exchange belongs to the new mark.
            mark.fetch_max(self.bytes(category), ORDER);
            (category, most)
        };
        Category::ALL.into_iter().map(take).filter(|(_, bytes)| *bytes > 0).collect()
    }

    /// Bytes of one category.
    pub fn bytes(&self, category: Category) -> u64 {
        self.books.now[category as usize].load(ORDER)
    }

    /// Bytes of all categories.
    pub fn total(&self) -> u64 {
        self.books.total.load(ORDER)
    }

    /// Everything, to show or to compare.
    pub fn snapshot(&self) -> Snapshot {
        let books = &self.books;
        let line = |category: Category| {
            let (bytes, peak) = (self.bytes(category), books.peak[category as usize].load(ORDER));
            (peak > 0).then_some(CategoryBytes { category, bytes, peak })
        };
        let mark = |phase: Phase| {
            let peak = books.peak_of_phase[phase as usize].load(ORDER);
            (peak > 0).then_some(PhasePeak { phase, peak })
        };
        Snapshot {
            categories: Category::ALL.into_iter().filter_map(line).collect(),
            total: self.total(),
            peak_total: books.peak_total.load(ORDER),
            phases: Phase::ALL.into_iter().filter_map(mark).collect(),
        }
    }
}

impl Entry {
    /// Changes the bytes.
    pub fn set(&mut self, bytes: u64) {
        let books = &self.ledger.books;
        if bytes >= self.bytes {
            books.add(self.category, bytes - self.bytes);
        } else {
            books.subtract(self.category, self.bytes - bytes);
        }
        self.bytes = bytes;
    }

    /// The bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_and_go_and_peaks_stay() {
        let ledger = Ledger::new();
        let mut weights = ledger.enter(Category::Weights, 100);
        for round in 1..=200 {
            let cache = ledger.enter(Category::KvCache, 50);
            assert_eq!(ledger.total(), 150);
            drop(cache);
            assert_eq!(ledger.bytes(Category::KvCache), 0, "round {round}");
        }
        weights.set(30);
        let snapshot = ledger.snapshot();
        assert_eq!((snapshot.total, snapshot.peak_total), (30, 150));
        assert_eq!(snapshot.categories[0].peak, 100);
        assert_eq!(snapshot.categories.len(), 2);
    }

    #[test]
    fn recent_marks_begin_again_at_what_is_there() {
        let ledger = Ledger::new();
        let _weights = ledger.enter(Category::Weights, 100);
        drop(ledger.enter(Category::Activations, 70));
        let first = [(Category::Weights, 100), (Category::Activations, 70)];
        assert_eq!(ledger.take_recent(), first.into_iter().collect());
        assert_eq!(ledger.take_recent(), first[..1].iter().copied().collect());
    }

    #[test]
    fn each_phase_has_a_mark_of_its_own() {
        let ledger = Ledger::new();
        let _weights = ledger.enter(Category::Weights, 100);
        ledger.begin(Phase::Train);
        drop(ledger.enter(Category::Activations, 70));
        ledger.begin(Phase::Eval);
        drop(ledger.enter(Category::KvCache, 20));
        ledger.begin(Phase::Train);
        let peaks = ledger.snapshot().phases.into_iter();
        let peaks: Vec<(Phase, u64)> = peaks.map(|of| (of.phase, of.peak)).collect();
        assert_eq!(peaks, [(Phase::Load, 100), (Phase::Train, 170), (Phase::Eval, 120)]);
    }

    #[test]
    fn threads_and_panics_leave_the_books_right() {
        let ledger = Ledger::new();
        std::thread::scope(|scope| {
            for thread in 0..8_u64 {
                let ledger = ledger.clone();
                scope.spawn(move || {
                    for round in 0..1000 {
                        let _entry = ledger.enter(Category::Activations, thread + round);
                    }
                });
            }
        });
        let inner = ledger.clone();
        let panicked = std::panic::catch_unwind(move || {
            let _entry = inner.enter(Category::KvCache, 7);
            panic!("in the middle of an evaluation");
        });
        assert!(panicked.is_err());
        assert_eq!(ledger.total(), 0);
        assert!(Category::ALL.into_iter().all(|category| ledger.bytes(category) == 0));
    }

    /// Marks are of sums that were really there: with every thread's bytes in at once, exactly that.
    #[test]
    fn threads_raise_the_marks_to_what_was_there() {
        let (ledger, all_in) = (Ledger::new(), std::sync::Barrier::new(8));
        for round in 1..=200 {
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        let _entry = ledger.enter(Category::Activations, round);
                        all_in.wait();
                    });
                }
            });
            let snapshot = ledger.snapshot();
            assert_eq!((snapshot.total, snapshot.peak_total), (0, 8 * round));
            assert_eq!(snapshot.categories[0].peak, 8 * round);
            assert_eq!(ledger.take_recent()[&Category::Activations], 8 * round);
        }
    }
}
