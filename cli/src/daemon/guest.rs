//! The seam between the job loop and whoever uses the model while no job is worked on.

/// Whoever holds memory that a job needs.
pub trait Guest {
    /// Lets go of everything, and returns when nothing is held any more; calls `alive` until then.
    /// Nothing is taken again before [`may_return`](Self::may_return).
    fn leave(&self, alive: &dyn Fn());

    /// The job is over.
    fn may_return(&self);
}
