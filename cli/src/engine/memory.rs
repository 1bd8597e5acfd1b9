//! Memory as the configuration wants it: the limit, and what may still be had.

use std::sync::Arc;

use chandler_kernels::memory::{Gate, set_gate};
use chandler_kernels::rehearsal::Rehearsal;
use chandler_vram::{Bytes, HostMeter, Ledger, Meter, Plan, counting, forget_huge_pages};

use super::{EngineError, device};
use crate::config::{Config, MemorySize};
use crate::heap;

/// Asks the counting allocator.
struct Counted;

impl Gate for Counted {
    fn admits(&self, bytes: usize) -> bool {
        counting::admits(bytes as u64)
    }
}

/// Holds this process to `memory.limit`: from now on an op that would go beyond it is refused. On a
/// GPU the limit is that of its pool.
pub(crate) fn keep_limit(config: &Config) {
    let limit = config.memory.limit.as_ref().and_then(MemorySize::bytes);
    let limit = limit.filter(|_| device::wanted(config).is_none());
    counting::set_limit(limit);
    set_gate(limit.is_some().then(|| Arc::new(Counted) as Arc<dyn Gate>));
}

/// Bytes that may still be allocated on the device: below the limit, and above what is left to others.
/// `None` where neither is known.
pub(crate) fn room(config: &Config) -> Option<u64> {
    if device::wanted(config).is_none() {
        return room_of_host(config);
    }
    let device = device::device(config).ok()?;
    let limit = config.memory.limit.as_ref().and_then(MemorySize::bytes);
    let below_limit =
        limit.map(|limit| limit.saturating_sub(device::pool().map_or(0, |pool| pool.used)));
    let of_device = device::room_on_gpu(&device).map(|free| free.saturating_sub(reserve(config)));
    [below_limit, of_device].into_iter().flatten().min()
}

/// What the ops of this machine's CPU take beside their results, or those of a GPU.
pub(crate) fn buffers(on_gpu: bool) -> Rehearsal {
    if on_gpu { Rehearsal::of_gpu() } else { Rehearsal::default() }
}

/// Bytes of the machine's memory in which a checkpoint may be copied, while the next step takes
/// `step_bytes` of the device's; `None` where even the step does not fit, and where nothing is known.
pub(crate) fn room_for_copy(config: &Config, step_bytes: u64) -> Option<u64> {
    let room = room_of_host(config)?;
    let shares = device::wanted(config).is_none();
    if shares { room.checked_sub(step_bytes) } else { Some(room) }
}

fn room_of_host(config: &Config) -> Option<u64> {
    let below_limit = counting::limit_bytes()
        .map(|limit| limit.saturating_sub(counting::live_bytes().unwrap_or(0)));
    let of_machine = HostMeter::new().read().free.map(|free| free.saturating_sub(reserve(config)));
    [below_limit, of_machine].into_iter().flatten().min()
}

/// Bytes that a run may use which holds `held` of them already.
pub(crate) fn budget(config: &Config, held: u64) -> Option<u64> {
    room(config).map(|room| room + held)
}

/// Gives back what lies idle: pages of the heap, and what the pool of a GPU keeps.
pub(crate) fn give_back() {
    heap::give_back();
    if let Err(error) = device::give_back() {
        tracing::warn!(%error, "what was freed stays in the pool of the GPU");
    }
}

/// Gives back what lies idle where nothing is to do: huge pages are no longer asked for either, which
/// small blocks would take where large ones lay.
pub(crate) fn rest() {
    give_back();
    if let Err(error) = forget_huge_pages() {
        tracing::debug!(%error, "huge pages are still asked for");
    }
}

/// High-water marks begin anew: what a run uses is told apart from what its preparation used.
pub(crate) fn measure_anew() -> Result<(), EngineError> {
    counting::reset_high_water();
    device::reset_high_water()
}

/// What was planned beside what was used since training began, for the log and the report.
pub(crate) fn beside_plan(plan: &Plan, ledger: &Ledger) -> serde_json::Value {
    let heap = counting::high_water_bytes();
    let pool = device::pool();
    let (what, used) = match pool {
        Some(pool) => ("of the GPU", Some(pool.used_high)),
        None => ("of heap", heap),
    };
    let used = used.map_or_else(|| "unknown".to_owned(), |bytes| Bytes(bytes).to_string());
    tracing::info!(
        "memory: {} planned for the run, {used} {what} used by the whole process, at most",
        Bytes(plan.peak)
    );
    serde_json::json!({
        "planned_peak": plan.peak,
        "heap_peak": heap,
        "gpu_pool": pool,
        "phases": ledger.snapshot().phases,
    })
}

/// What `memory.reserve` leaves to other programs.
pub(crate) fn reserve(config: &Config) -> u64 {
    config.memory.reserve.as_ref().and_then(MemorySize::bytes).unwrap_or(0)
}
