//! What the pool of scratch buffers comes to hold, found without running an op.
//!
//! Buffers stay in the pool after their op, so what it holds is part of the memory of every later
//! moment. How much that is depends on which ops ask for which sizes in which order. Every op that
//! takes buffers of some size has a function `rehearse…` that asks a [`Rehearsal`] for the same ones.

/// The pool of [`scratch`](crate::scratch), sizes alone.
///
/// ```
/// use candle_core::DType;
/// use chandler_kernels::linear;
/// use chandler_kernels::rehearsal::Rehearsal;
///
/// let mut pool = Rehearsal::with_threads(2);
/// linear::rehearse(&mut pool, [64, 512, 512], DType::F32);
/// let once = pool.held_bytes();
/// linear::rehearse(&mut pool, [64, 512, 512], DType::F32);
/// assert_eq!(pool.held_bytes(), once);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rehearsal {
    /// Bytes of the buffers that nobody uses, in ascending order.
    idle: Vec<usize>,
    held: usize,
    threads: usize,
    /// On a GPU no op keeps a buffer: what is held is the most that one takes.
    of_gpu: bool,
}

/// A buffer in use.
#[derive(Debug)]
#[must_use]
pub(crate) struct Taken(usize);

/// Bytes that every buffer is a multiple of.
const LINE: usize = 64;

impl Default for Rehearsal {
    fn default() -> Self {
        Self::with_threads(rayon::current_num_threads())
    }
}

impl Rehearsal {
    /// An empty pool that so many threads share.
    pub fn with_threads(threads: usize) -> Self {
        Self { idle: vec![], held: 0, threads: threads.max(1), of_gpu: false }
    }

    /// What the ops of a GPU take.
    pub fn of_gpu() -> Self {
        Self { of_gpu: true, ..Self::with_threads(1) }
    }

    pub(crate) fn is_of_gpu(&self) -> bool {
        self.of_gpu
    }

    /// An op of a GPU takes so many bytes while it works.
    pub(crate) fn pass(&mut self, bytes: usize) {
        self.held = self.held.max(bytes);
    }

    /// Bytes of all buffers. One thread asks for the same every time; of several, one may be ahead
    /// of the others and find a buffer taken that was idle here, for which a share is added.
    pub fn held_bytes(&self) -> usize {
        self.held + if self.threads > 1 { self.held / 32 } else { 0 }
    }

    /// How many of `tasks` run at a time.
    pub(crate) fn at_a_time(&self, tasks: usize) -> usize {
        self.threads.min(tasks)
    }

    /// The smallest idle buffer that has room for `len` elements of `T`; where there is none, a new
    /// one in place of the largest.
    pub(crate) fn take<T>(&mut self, len: usize) -> Taken {
        let bytes = (len * size_of::<T>()).next_multiple_of(LINE);
        if let Some(at) = self.idle.iter().position(|idle| *idle >= bytes) {
            return Taken(self.idle.remove(at));
        }
        self.held -= self.idle.pop().unwrap_or(0);
        self.held += bytes;
        Taken(bytes)
    }

    pub(crate) fn give(&mut self, Taken(bytes): Taken) {
        let at = self.idle.partition_point(|idle| *idle < bytes);
        self.idle.insert(at, bytes);
    }

    pub(crate) fn give_all(&mut self, all: impl IntoIterator<Item = Taken>) {
        all.into_iter().for_each(|taken| self.give(taken));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_and_outgrown_ones_replaced() {
        let mut pool = Rehearsal::with_threads(1);
        let (a, b) = (pool.take::<f32>(1000), pool.take::<u8>(64));
        assert_eq!(pool.held_bytes(), 4032 + 64);
        pool.give_all([a, b]);
        // Into the larger of the two.
        let again = pool.take::<u8>(100);
        assert_eq!((again.0, pool.held_bytes()), (4032, 4032 + 64));
        pool.give(again);
        // In place of the larger one.
        let grown = pool.take::<f32>(2000);
        assert_eq!(pool.held_bytes(), 64 + 8000);
        pool.give(grown);
        assert_eq!(pool.idle, [64, 8000]);
    }
}
