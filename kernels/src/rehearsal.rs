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
    /// On a GPU no op keeps a buffer: there is what one takes while it works.
    of_gpu: Option<Passing>,
}

/// What ops of a GPU take while they work, in bytes: the most that one of each kind does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Passing {
    /// The gradient of a norm's weight.
    pub norm: usize,
    /// The forward pass of attention; where its backward pass follows, that stays until then.
    pub attention_forward: usize,
    /// The backward pass of attention, with what the forward pass has left.
    pub attention_backward: usize,
    /// Attention of a token to a cache.
    pub decode: usize,
    /// The loss.
    pub loss: usize,
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
        Self { idle: vec![], held: 0, threads: threads.max(1), of_gpu: None }
    }

    /// What the ops of a GPU take.
    pub fn of_gpu() -> Self {
        Self { of_gpu: Some(Passing::default()), ..Self::with_threads(1) }
    }

    /// What the ops so far took while they worked, forgotten here; nothing on the CPU, whose ops keep
    /// their buffers.
    pub fn take_passing(&mut self) -> Passing {
        self.of_gpu.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(crate) fn is_of_gpu(&self) -> bool {
        self.of_gpu.is_some()
    }

    /// An op of a GPU takes so many bytes while it works.
    pub(crate) fn pass(&mut self, kind: fn(&mut Passing) -> &mut usize, bytes: usize) {
        if let Some(passing) = &mut self.of_gpu {
            let most = kind(passing);
            *most = bytes.max(*most);
        }
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

    #[test]
    fn ops_of_a_gpu_keep_nothing() {
        let mut pool = Rehearsal::of_gpu();
        for bytes in [30, 70, 50] {
            pool.pass(|passing| &mut passing.loss, bytes);
        }
        assert_eq!(pool.held_bytes(), 0);
        assert_eq!(pool.take_passing(), Passing { loss: 70, ..Passing::default() });
        assert_eq!(pool.take_passing(), Passing::default());
    }
}
