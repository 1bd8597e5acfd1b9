//! Learning-rate schedules, with transformers' formulas.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// How the learning rate moves after its warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays, and has no warm-up.
    Constant,
    /// Stays.
    ConstantWithWarmup,
    /// Falls to 0 in a straight line.
    Linear,
    /// Falls along a cosine.
    Cosine {
        /// Waves of the cosine: 0.5 falls once.
        num_cycles: f64,
        /// Where it falls to, as a share of the peak.
        min_lr_rate: f64,
    },
    /// Stays, then falls over the last steps (warm-up, stable, decay).
    Wsd {
        /// Steps of the fall.
        num_decay_steps: u64,
        /// Steps at the peak; what warm-up and fall leave, if not given.
        num_stable_steps: Option<u64>,
        /// Shape of the rise.
        warmup_type: Ramp,
        /// Shape of the fall.
        decay_type: Ramp,
        /// Where it begins and ends, as a share of the peak.
        min_lr_ratio: f64,
        /// Waves of a cosine fall.
        num_cycles: f64,
    },
}

/// The shape of a rise or a fall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ramp {
    /// A straight line.
    Linear,
    /// A cosine.
    Cosine,
    /// One minus a square root.
    OneMinusSqrt,
}

impl Schedule {
    /// Factor on the learning rate at `step` (0 at the first) of `total_steps`.
    pub fn factor(self, step: u64, warmup_steps: u64, total_steps: u64) -> f64 {
        let (at, warmup, total) = (step as f64, warmup_steps as f64, total_steps as f64);
        let rise = at / warmup.max(1.0);
        let progress = (at - warmup) / (total - warmup).max(1.0);
        match self {
            Self::Constant => 1.0,
            Self::Wsd { .. } => self.wsd(step, warmup_steps, total_steps),
            _ if step < warmup_steps => rise,
            Self::ConstantWithWarmup => 1.0,
            Self::Linear => ((total - at) / (total - warmup).max(1.0)).max(0.0),
            Self::Cosine { num_cycles, min_lr_rate } => {
                above_floor(cosine_fall(progress, num_cycles), min_lr_rate)
            }
        }
    }

    fn wsd(self, step: u64, warmup_steps: u64, total_steps: u64) -> f64 {
        let Self::Wsd {
            num_decay_steps,
            num_stable_steps,
            warmup_type,
            decay_type,
            min_lr_ratio,
            num_cycles,
        } = self
        else {
            return 1.0;
        };
        if step < warmup_steps {
            let progress = step as f64 / warmup_steps.max(1) as f64;
            let factor = match warmup_type {
                Ramp::Linear => progress,
                Ramp::Cosine => 0.5 * (1.0 - (PI * progress).cos()),
                Ramp::OneMinusSqrt => 1.0 - (1.0 - progress).sqrt(),
            };
            return above_floor(factor, min_lr_ratio);
        }
        let left = total_steps.saturating_sub(warmup_steps + num_decay_steps);
        let fall_begins = warmup_steps + num_stable_steps.unwrap_or(left);
        if step < fall_begins {
            return 1.0;
        }
        if step >= fall_begins + num_decay_steps {
            return min_lr_ratio;
        }
        let progress = (step - fall_begins) as f64 / num_decay_steps.max(1) as f64;
        let factor = match decay_type {
            Ramp::Linear => 1.0 - progress,
            Ramp::Cosine => cosine_fall(progress, num_cycles),
            Ramp::OneMinusSqrt => 1.0 - progress.sqrt(),
        };
        above_floor(factor, min_lr_ratio)
    }
}

fn cosine_fall(progress: f64, num_cycles: f64) -> f64 {
    0.5 * (1.0 + (PI * num_cycles * 2.0 * progress).cos())
}

fn above_floor(factor: f64, floor: f64) -> f64 {
    (factor * (1.0 - floor) + floor).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Factors of `torch.optim.lr_scheduler.LambdaLR` with transformers' functions, 3 of 10 steps
    /// warm-up, at steps 0, 2, 3, 6 and 9; made by `fixtures/schedules.py`.
    #[test]
    fn the_factors_of_transformers() {
        let cases = [
            (Schedule::Constant, [1.0, 1.0, 1.0, 1.0, 1.0]),
            (Schedule::ConstantWithWarmup, [0.0, 2.0 / 3.0, 1.0, 1.0, 1.0]),
            (Schedule::Linear, [0.0, 2.0 / 3.0, 1.0, 4.0 / 7.0, 1.0 / 7.0]),
            (
                Schedule::Cosine { num_cycles: 0.5, min_lr_rate: 0.0 },
                [
                    0.0,
                    0.666_666_666_666_666_6,
                    1.0,
                    0.611_260_466_978_157_3,
                    0.049_515_566_048_790_48,
                ],
            ),
            (
                Schedule::Cosine { num_cycles: 0.5, min_lr_rate: 0.1 },
                [
                    0.0,
                    0.666_666_666_666_666_6,
                    1.0,
                    0.650_134_420_280_341_5,
                    0.144_564_009_443_911_43,
                ],
            ),
            (
                Schedule::Wsd {
                    num_decay_steps: 4,
                    num_stable_steps: None,
                    warmup_type: Ramp::Linear,
                    decay_type: Ramp::Cosine,
                    min_lr_ratio: 0.1,
                    num_cycles: 0.5,
                },
                [0.1, 0.7, 1.0, 1.0, 0.231_801_948_466_054_8],
            ),
        ];
        for (schedule, expected) in cases {
            for (step, expected) in [0, 2, 3, 6, 9].into_iter().zip(expected) {
                let found = schedule.factor(step, 3, 10);
                assert!((found - expected).abs() < 1e-12, "{schedule:?} at {step}: {found}");
            }
        }
    }

    #[test]
    fn no_warm_up_begins_at_the_peak() {
        for schedule in [Schedule::Linear, Schedule::ConstantWithWarmup] {
            assert!((schedule.factor(0, 0, 10) - 1.0).abs() < 1e-15);
        }
    }
}
