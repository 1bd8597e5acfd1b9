//! Memory as the configuration wants it: the limit, and what may still be had.

use std::sync::Arc;

use chandler_kernels::memory::{Gate, set_gate};
use chandler_vram::{Bytes, HostMeter, Ledger, Meter, Plan, counting};

use crate::config::{Config, MemorySize};

/// Asks the counting allocator.
struct Counted;

impl Gate for Counted {
    fn admits(&self, bytes: usize) -> bool {
        counting::admits(bytes as u64)
    }
}

/// Holds this process to `memory.limit`: from now on an op that would go beyond it is refused.
pub(crate) fn keep_limit(config: &Config) {
    let limit = config.memory.limit.as_ref().and_then(MemorySize::bytes);
    counting::set_limit(limit);
    set_gate(limit.is_some().then(|| Arc::new(Counted) as Arc<dyn Gate>));
}

/// Bytes that may still be allocated: below the limit, and above what is left to others. `None`
/// where neither is known.
pub(crate) fn room(config: &Config) -> Option<u64> {
    let below_limit = counting::limit_bytes()
        .map(|limit| limit.saturating_sub(counting::live_bytes().unwrap_or(0)));
    let of_machine = HostMeter::new().read().free.map(|free| free.saturating_sub(reserve(config)));
    [below_limit, of_machine].into_iter().flatten().min()
}

/// Bytes that a run may use which holds `held` of them already.
pub(crate) fn budget(config: &Config, held: u64) -> Option<u64> {
    room(config).map(|room| room + held)
}

/// What was planned beside what was used since training began, for the log and the report.
pub(crate) fn beside_plan(plan: &Plan, ledger: &Ledger) -> serde_json::Value {
    let heap = counting::high_water_bytes();
    let used = heap.map_or_else(|| "unknown".to_owned(), |bytes| Bytes(bytes).to_string());
    tracing::info!(
        "memory: {} planned for the run, {used} of heap used by the whole process, at most",
        Bytes(plan.peak)
    );
    serde_json::json!({
        "planned_peak": plan.peak,
        "heap_peak": heap,
        "phases": ledger.snapshot().phases,
    })
}

/// What `memory.reserve` leaves to other programs.
pub(crate) fn reserve(config: &Config) -> u64 {
    config.memory.reserve.as_ref().and_then(MemorySize::bytes).unwrap_or(0)
}
