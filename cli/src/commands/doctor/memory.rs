//! Memory: the machine's, the group's, the swap, and what the configured model takes of it.

use std::path::PathBuf;

use candle_core::Device;
use chandler_model::hub::ModelSource;
use chandler_model::{CausalLm, ModelConfig};
use chandler_vram::{Bytes, HostMeter, HostReading, Plan};

use super::super::App;
use super::check::{Check, shown};
use crate::config::{Config, MemorySize};
use crate::engine::{EngineError, Planning, dtype, fitting, lora, memory_room, train_settings};
use crate::failure::in_one_line;

/// Swap in use beyond this slows a run down.
const MUCH_SWAP: u64 = 256 << 20;

/// Swap space, in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Swap {
    total: u64,
    used: u64,
}

pub(super) fn checks(app: &App, config: &Config) -> Vec<Check> {
    let host = HostMeter::new().read_host();
    let limit = config.memory.limit.as_ref().and_then(MemorySize::bytes);
    let mut checks = vec![machine(&host), swap(read_swap())];
    checks.extend(group(&host, limit));
    if let Some(folder) = model_on_disk(app, config) {
        checks.push(of_model(plan(config, &folder)));
    }
    checks
}

fn machine(host: &HostReading) -> Check {
    let detail = format!(
        "{} in all, {} available, cgroup limit {}",
        shown(host.total),
        shown(host.available),
        host.cgroup_limit.map_or_else(|| "none".to_owned(), |limit| shown(Some(limit)))
    );
    Check::info("memory", detail)
}

fn read_swap() -> Option<Swap> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let (total, free) = (field("SwapTotal:")?, field("SwapFree:")?);
    Some(Swap { total, used: total.saturating_sub(free) })
}

fn swap(found: Option<Swap>) -> Check {
    const NAME: &str = "swap";
    match found {
        None => Check::info(NAME, "unknown"),
        Some(Swap { total: 0, .. }) => Check::ok(NAME, "off"),
        Some(Swap { total, used }) => {
            let words = format!("on: {} of {} in use", Bytes(used), Bytes(total));
            if used > MUCH_SWAP {
                let cure = "a run in swapped memory is slow: end what else needs memory, set \
                            memory.limit, or `sudo swapoff -a`";
                Check::warning(NAME, words, cure)
            } else {
                Check::info(NAME, words).with_hint("memory.limit keeps a run out of it")
            }
        }
    }
}

/// Whether the kernel would end the process before `memory.limit` refuses anything.
fn group(host: &HostReading, limit: Option<u64>) -> Option<Check> {
    const NAME: &str = "memory limit";
    let cgroup = host.cgroup_limit.filter(|limit| host.total.is_none_or(|total| *limit < total));
    Some(match (limit, cgroup) {
        (None, None) => return None,
        (Some(limit), None) => Check::ok(NAME, format!("memory.limit is {}", Bytes(limit))),
        (Some(limit), Some(cgroup)) if limit < cgroup => Check::ok(
            NAME,
            format!("memory.limit is {}, below the cgroup's {}", Bytes(limit), Bytes(cgroup)),
        ),
        (Some(limit), Some(cgroup)) => Check::warning(
            NAME,
            format!(
                "memory.limit is {}, and the cgroup's limit of {} is not above it: the kernel kills \
                 the daemon before it can make do with less",
                Bytes(limit),
                Bytes(cgroup)
            ),
            format!("set memory.limit to {} or less", Bytes(cgroup / 10 * 9)),
        ),
        (None, Some(cgroup)) => Check::info(NAME, format!("the cgroup's, {}", Bytes(cgroup)))
            .with_hint(format!(
                "memory.limit = \"{}\" has it make do with less instead of being killed",
                Bytes(cgroup / 10 * 9)
            )),
    })
}

/// The folder of the model that the next run would begin with, where it needs no download.
fn model_on_disk(app: &App, config: &Config) -> Option<PathBuf> {
    let newest = app.state.model();
    if newest.join("config.json").is_file() {
        return Some(newest);
    }
    match ModelSource::parse(&config.model.path.as_ref()?.0) {
        ModelSource::Folder(folder) => Some(folder),
        ModelSource::Hub { .. } => None,
    }
}

/// What a run on rows of `data.max_length` tokens takes, cut to what there is.
fn plan(config: &Config, folder: &std::path::Path) -> Result<Plan, EngineError> {
    let shape = ModelConfig::read(folder)?;
    let mut model = CausalLm::hollow(shape, dtype(config), &Device::Cpu)?;
    if let Some(lora) = lora(config) {
        model.add_lora(lora, config.train.seed)?;
    }
    let mut planning = Planning::new(config, &model, None, None);
    let limit = config.memory.limit.as_ref().and_then(MemorySize::bytes);
    planning.budget = [memory_room(config), limit].into_iter().flatten().min();
    Ok(fitting(&planning, &train_settings(config)).1)
}

fn of_model(planned: Result<Plan, EngineError>) -> Check {
    const NAME: &str = "memory for the model";
    let plan = match planned {
        Ok(plan) => plan,
        Err(error) => {
            let hint = error.hint().unwrap_or_else(|| "check model.path".to_owned());
            return Check::problem(NAME, in_one_line(&error), hint);
        }
    };
    let words = format!("a run takes {} of {}", Bytes(plan.peak), shown(plan.budget));
    match plan.budget {
        None => Check::info(NAME, words),
        Some(budget) if plan.train_peak > budget => Check::problem(
            NAME,
            format!("{words} that can be had, however it is cut"),
            "`chandler plan` shows for what; lora.r, model.dtype = \"bf16\", a shorter \
             data.max_length or a smaller model take less",
        ),
        Some(budget) if plan.peak > budget => Check::warning(
            NAME,
            format!("{words} that can be had: evaluations will be cut"),
            "lower eval.batch_size or eval.max_new_tokens",
        ),
        Some(_) => Check::ok(NAME, format!("{words} that can be had")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn a_group_below_the_limit_is_told() {
        let gib = |n: u64| n << 30;
        let host = |cgroup| HostReading {
            total: Some(gib(16)),
            cgroup_limit: cgroup,
            ..HostReading::default()
        };
        let verdict = |cgroup, limit| group(&host(cgroup), limit).map(|check| check.verdict);
        assert_eq!(verdict(None, None), None);
        assert_eq!(verdict(Some(gib(64)), None), None, "no limit on this machine");
        assert_eq!(verdict(None, Some(gib(2))), Some(Verdict::Ok));
        assert_eq!(verdict(Some(gib(4)), Some(gib(2))), Some(Verdict::Ok));
        assert_eq!(verdict(Some(gib(4)), Some(gib(8))), Some(Verdict::Warning));
        assert_eq!(verdict(Some(gib(4)), None), Some(Verdict::Info));
    }

    #[test]
    fn swap_in_use_is_told() {
        let with = |total, used| swap(Some(Swap { total, used })).verdict;
        assert_eq!(with(0, 0), Verdict::Ok);
        assert_eq!(with(1 << 30, 1 << 20), Verdict::Info);
        assert_eq!(with(1 << 30, 1 << 29), Verdict::Warning);
        assert_eq!(swap(None).verdict, Verdict::Info);
    }

    #[test]
    fn a_model_too_large_for_the_machine_is_told() {
        let planned = |train_peak, peak, budget| {
            let plan = Plan {
                lines: vec![],
                resident: 0,
                train_peak,
                eval_peak: peak,
                peak,
                checkpoint: 0,
                budget,
                fits: None,
            };
            of_model(Ok(plan)).verdict
        };
        assert_eq!(planned(5, 6, Some(10)), Verdict::Ok);
        assert_eq!(planned(5, 16, Some(10)), Verdict::Warning);
        assert_eq!(planned(15, 16, Some(10)), Verdict::Problem);
        assert_eq!(planned(15, 16, None), Verdict::Info);
    }
}
