//! Models and settings drawn at random: the same seed draws the same ones.

use chandler_model::{Family, ModelConfig};
use chandler_trainer::{MomentsDtype, TrainSettings};
use serde_json::{Value, json};

use super::{Mode, Precision};
use crate::engine::EngineError;
use crate::failure::Failure;

/// A model, how it is trained, and how it answers.
#[derive(Debug, Clone)]
pub(super) struct Draw {
    /// The configuration, as `config.json` has it.
    pub(super) shape: Value,
    pub(super) mode: Mode,
    pub(super) precision: Precision,
    pub(super) master_weights: bool,
    pub(super) moments: MomentsDtype,
    pub(super) optimizer_in_backward: bool,
    pub(super) kept_blocks: usize,
    pub(super) batch_size: usize,
    pub(super) micro_batches: usize,
    /// Tokens of the documents of a row.
    pub(super) documents: Vec<usize>,
    /// Answers side by side, tokens of a prompt, of an answer, and of a row that is scored.
    pub(super) answers: [usize; 4],
    /// Where a budget lies between the least and the most that the settings need, from 0 to 1.
    pub(super) budget: f64,
}

/// How large what is drawn may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) hidden: &'static [usize],
    pub(super) vocab: &'static [usize],
    pub(super) tokens: &'static [usize],
    pub(super) prompts: &'static [usize],
    pub(super) most_layers: usize,
    pub(super) most_rows: usize,
}

impl Sizes {
    /// Models of some MiB to some 100 MiB.
    pub(super) const USUAL: Self = Self {
        hidden: &[192, 256, 320, 384, 512],
        vocab: &[4096, 8192, 16_384, 32_768],
        tokens: &[128, 192, 256, 384, 512, 700],
        prompts: &[32, 100, 300, 700, 1024, 1500],
        most_layers: 8,
        most_rows: 4,
    };
    /// Models of a few MiB.
    pub(super) const LITTLE: Self = Self {
        hidden: &[128, 192],
        vocab: &[2048, 4096],
        tokens: &[128, 192, 256],
        prompts: &[32, 100, 200],
        most_layers: 4,
        most_rows: 2,
    };
}

/// Numbers from a seed (SplitMix64).
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn within(&mut self, range: std::ops::RangeInclusive<usize>) -> usize {
        range.start() + (self.next() % (range.end() - range.start() + 1) as u64) as usize
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.within(0..=choices.len() - 1)]
    }

    fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }
}

impl Draw {
    /// Draw number `index` of all: the families and the precisions take turns.
    pub(super) fn new(dice: &mut Dice, sizes: &Sizes, index: usize) -> Self {
        let shape = shape(dice, sizes, Family::ALL[index % Family::ALL.len()]);
        let layers = shape["num_hidden_layers"].as_u64().unwrap_or(1) as usize;
        let mode = if dice.within(0..=2) == 0 { Mode::Lora } else { Mode::Full };
        let (precision, master_weights) =
            dice.of(&[(Precision::F32, true), (Precision::Bf16, true), (Precision::Bf16, false)]);
        let optimizer_in_backward = dice.within(0..=3) == 0;
        let rows = dice.within(1..=sizes.most_rows);
        let micro_batches =
            if optimizer_in_backward || dice.coin() { 1 } else { dice.within(2..=3) };
        Self {
            mode,
            precision,
            master_weights,
            moments: dice.of(&[MomentsDtype::F32, MomentsDtype::Blockwise8]),
            optimizer_in_backward,
            kept_blocks: dice.within(0..=layers),
            batch_size: rows,
            micro_batches,
            documents: documents(dice, sizes),
            answers: [
                dice.within(1..=2 * sizes.most_rows),
                dice.of(sizes.prompts),
                dice.within(2..=6),
                dice.of(sizes.tokens),
            ],
            budget: (dice.next() % 1000) as f64 / 1000.0,
            shape,
        }
    }

    /// The shape `small` with rows of 512 tokens, in a few ways to train it.
    pub(super) fn of_small(small: Value) -> Vec<Self> {
        let plain = Self {
            shape: small,
            mode: Mode::Full,
            precision: Precision::Bf16,
            master_weights: true,
            moments: MomentsDtype::F32,
            optimizer_in_backward: false,
            kept_blocks: 8,
            batch_size: 4,
            micro_batches: 1,
            documents: vec![512],
            answers: [4, 512, 4, 512],
            budget: 0.5,
        };
        vec![
            Self { precision: Precision::F32, kept_blocks: 0, ..plain.clone() },
            Self { mode: Mode::Lora, ..plain.clone() },
            Self {
                master_weights: false,
                moments: MomentsDtype::Blockwise8,
                optimizer_in_backward: true,
                ..plain.clone()
            },
            plain,
        ]
    }

    pub(super) fn config(&self) -> Result<ModelConfig, Failure> {
        let config = ModelConfig::from_json(self.shape.clone(), "drawn".as_ref());
        Ok(config.map_err(EngineError::Model)?)
    }

    pub(super) fn settings(&self) -> TrainSettings {
        TrainSettings {
            learning_rate: 1e-4,
            max_steps: Some(STEPS),
            per_device_train_batch_size: self.batch_size,
            gradient_accumulation_steps: self.micro_batches,
            shuffle: false,
            kept_blocks: Some(self.kept_blocks),
            master_weights: self.master_weights,
            moments: self.moments,
            optimizer_in_backward: self.optimizer_in_backward,
            ..TrainSettings::default()
        }
    }

    /// Tokens of a row.
    pub(super) fn row_tokens(&self) -> usize {
        self.documents.iter().sum()
    }

    /// In a few words.
    pub(super) fn describe(&self) -> String {
        let of = |key: &str| self.shape[key].to_string();
        let mut words = vec![
            self.shape["model_type"].as_str().unwrap_or("?").to_owned(),
            format!("{}x{}", of("num_hidden_layers"), of("hidden_size")),
            format!("V {}", of("vocab_size")),
            match (self.precision, self.master_weights) {
                (Precision::Bf16, false) => "bf16 alone".to_owned(),
                (precision, _) => precision.name().to_owned(),
            },
        ];
        let tied = self.shape["tie_word_embeddings"] == true;
        words.extend((!tied).then(|| "untied".to_owned()));
        words.extend((self.mode == Mode::Lora).then(|| "lora".to_owned()));
        words.extend((self.moments == MomentsDtype::Blockwise8).then(|| "8-bit".to_owned()));
        words.extend(self.optimizer_in_backward.then(|| "in backward".to_owned()));
        words.join(", ")
    }

    /// Rows, tokens, what is kept.
    pub(super) fn describe_rows(&self) -> String {
        let Self { micro_batches, batch_size, kept_blocks, .. } = self;
        let documents: Vec<String> = self.documents.iter().map(usize::to_string).collect();
        format!("{micro_batches} x {batch_size} x ({}), kept {kept_blocks}", documents.join("+"))
    }
}

/// Optimizer steps of a run: what the first leaves in the pool is there in the second.
pub(super) const STEPS: u64 = 3;

fn shape(dice: &mut Dice, sizes: &Sizes, family: Family) -> Value {
    let hidden = dice.of(sizes.hidden);
    let head_dim = dice.of(&[32, 64]);
    let (kv_heads, group) = (dice.within(1..=3), dice.within(1..=3));
    let bias = dice.coin();
    let mut shape = json!({
        "model_type": family.model_type(),
        "vocab_size": dice.of(sizes.vocab),
        "hidden_size": hidden,
        "intermediate_size": hidden * dice.within(4..=12) / 4,
        "num_hidden_layers": dice.within(2..=sizes.most_layers),
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "tie_word_embeddings": dice.coin(),
        "query_pre_attn_scalar": head_dim,
        "attention_bias": bias,
        "mlp_bias": bias,
    });
    if dice.coin() {
        shape["sliding_window"] = dice.of(&[64, 100, 300]).into();
        shape["use_sliding_window"] = true.into();
        shape["max_window_layers"] = 1.into();
    }
    shape
}

/// A row of one document, or of several.
fn documents(dice: &mut Dice, sizes: &Sizes) -> Vec<usize> {
    let tokens = dice.of(sizes.tokens);
    let first = if dice.coin() { tokens } else { dice.within(2..=tokens - 2) };
    let mut all = vec![first, tokens - first];
    if all[1] > 8 {
        let second = dice.within(2..=all[1] - 2);
        all = vec![first, second, all[1] - second];
    }
    all.retain(|length| *length > 0);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_draw_is_a_model_and_the_same_seed_draws_the_same() {
        let draw = |seed| -> Vec<Draw> {
            let mut dice = Dice::new(seed);
            (0..60).map(|index| Draw::new(&mut dice, &Sizes::USUAL, index)).collect()
        };
        for one in draw(1) {
            let layers = one.config().unwrap().layers.len();
            assert!(one.kept_blocks <= layers, "{one:?}");
            assert!(one.micro_batches == 1 || !one.optimizer_in_backward);
            assert!(Sizes::USUAL.tokens.contains(&one.row_tokens()));
        }
        assert_eq!(format!("{:?}", draw(7)), format!("{:?}", draw(7)));
        assert_ne!(format!("{:?}", draw(7)), format!("{:?}", draw(8)));
    }
}
