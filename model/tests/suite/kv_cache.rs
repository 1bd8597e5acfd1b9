//! Decoding with a cache against the forward pass over the whole text.

use std::cell::Cell;

use candle_core::DType;
use chandler_model::{CausalLm, KvCache, ModelError, SequenceLayout};

use crate::support::{MODELS, device, flat, largest_difference, load, model_folder};

/// Two rows of different lengths, a prompt at once and then token by token.
#[test]
fn decoding_is_the_forward_pass_in_pieces() {
    for name in MODELS {
        let model = load(name);
        let texts: Vec<Vec<u32>> = vec![
            (0..40).map(|i| (i * 37 + 11) % 2000).collect(),
            (0..29).map(|i| (i * 91 + 5) % 2000).collect(),
        ];
        let whole = |tokens: &[u32]| {
            let layout = SequenceLayout::new([tokens.len() as u32]);
            let hidden = model.forward(&model.input(tokens, layout).unwrap()).unwrap();
            flat(&model.logits(&hidden).unwrap().get(tokens.len() - 1).unwrap())
        };
        let mut cache = KvCache::new(model.config(), 2, 41, DType::F32, &device()).unwrap();
        let mut seen = [30, 19];
        let prompts = [(0, &texts[0][..30]), (1, &texts[1][..19])];
        let mut logits = model.forward_cached(&prompts, &mut cache).unwrap();
        for _ in 0..10 {
            for row in 0..2 {
                let found = flat(&logits.get(row).unwrap());
                let difference = largest_difference(&found, &whole(&texts[row][..seen[row]]));
                assert!(difference < 2e-5, "{name} row {row} at {}: {difference}", seen[row]);
            }
            let next: Vec<(usize, &[u32])> =
                (0..2).map(|row| (row, &texts[row][seen[row]..=seen[row]])).collect();
            logits = model.forward_cached(&next, &mut cache).unwrap();
            seen = seen.map(|seen| seen + 1);
        }
        assert_eq!((cache.len(0), cache.len(1)), (40, 29));
    }
}

#[test]
fn a_full_cache_says_so() {
    let model = load("smol-llama");
    let mut cache = KvCache::new(model.config(), 1, 4, DType::F32, &device()).unwrap();
    let error = model.forward_cached(&[(0, &[1, 2, 3, 4, 5])], &mut cache).unwrap_err();
    assert!(matches!(error, ModelError::CacheFull { wanted: 5, capacity: 4 }), "{error}");
    assert_eq!(cache.len(0), 0);
}

/// Prompts of several lengths and three tokens each: every row's logits, step by step.
fn steps(model: &CausalLm, rows: &[usize]) -> Vec<Vec<f64>> {
    let lens = [1, 40, 7, 19];
    let texts: Vec<Vec<u32>> = rows
        .iter()
        .map(|row| (0..lens[*row] + 3).map(|i| (i * 37 + 11 * *row as u32) % 2000).collect())
        .collect();
    let (config, dtype) = (model.config(), model.dtype());
    let mut cache = KvCache::new(config, rows.len(), 43, dtype, &device()).unwrap();
    let mut steps = vec![vec![]; rows.len()];
    for step in 0..4 {
        let new = |text: &'_ [u32]| if step == 0 { 0 } else { text.len() - 4 + step };
        let inputs: Vec<(usize, &[u32])> = texts
            .iter()
            .enumerate()
            .map(|(row, text)| (row, &text[new(text)..text.len() - 3 + step]))
            .collect();
        let logits = model.forward_cached(&inputs, &mut cache).unwrap();
        for (row, steps) in steps.iter_mut().enumerate() {
            steps.extend(flat(&logits.get(row).unwrap()));
        }
    }
    steps
}

#[test]
fn a_row_has_the_same_bits_whatever_is_beside_it() {
    for name in ["qwen3", "gemma2", "qwen2"] {
        for dtype in [DType::F32, DType::BF16] {
            let folder = model_folder(name);
            let model = CausalLm::load(&folder, Some(dtype), &device()).unwrap();
            let together = steps(&model, &[0, 1, 2, 3]);
            for (row, beside) in together.iter().enumerate() {
                assert!(steps(&model, &[row])[0] == *beside, "{name} {dtype:?} row {row}");
            }
            assert!(steps(&model, &[2, 1]) == [together[2].clone(), together[1].clone()]);
        }
    }
}

#[test]
fn a_long_prompt_goes_in_pieces() {
    for name in ["qwen3", "gemma3"] {
        let model = load(name);
        let texts = [2100, 700].map(|len| (0..len).map(|i| (i * 37 + 11) % 2000).collect());
        let texts: [Vec<u32>; 2] = texts;
        let mut cache = KvCache::new(model.config(), 2, 2100, DType::F32, &device()).unwrap();
        let inputs: [(usize, &[u32]); 2] = [(1, &texts[0]), (0, &texts[1])];
        let logits = model.forward_cached(&inputs, &mut cache).unwrap();
        assert_eq!((cache.len(1), cache.len(0)), (2100, 700));
        for (row, text) in texts.iter().enumerate() {
            let layout = SequenceLayout::new([text.len() as u32]);
            let hidden = model.forward(&model.input(text, layout).unwrap()).unwrap();
            let last = hidden.narrow(0, text.len() - 1, 1).unwrap();
            let expected = flat(&model.logits(&last).unwrap());
            let difference = largest_difference(&flat(&logits.get(row).unwrap()), &expected);
            assert!(difference < 5e-5, "{name} row {row}: {difference}");
        }
    }
}

/// Between two parts somebody may have it end; who does not changes no bit.
#[test]
fn a_long_prompt_can_be_stopped_between_its_pieces() {
    let model = load("qwen3");
    let text: Vec<u32> = (0..2100).map(|i| (i * 37 + 11) % 2000).collect();
    let rows: [(usize, &[u32]); 1] = [(0, &text)];
    let cache = || KvCache::new(model.config(), 1, 2100, DType::F32, &device()).unwrap();
    let expected = flat(&model.forward_cached(&rows, &mut cache()).unwrap());
    let asked = Cell::new(0);
    let goes_on = || {
        asked.set(asked.get() + 1);
        false
    };
    let logits = model.forward_cached_unless(&rows, &mut cache(), &goes_on).unwrap().unwrap();
    assert!(flat(&logits) == expected);
    assert_eq!(asked.get(), 2, "between three parts");
    let stopped = || {
        asked.set(asked.get() + 1);
        true
    };
    assert!(model.forward_cached_unless(&rows, &mut cache(), &stopped).unwrap().is_none());
    assert_eq!(asked.get(), 3, "it ends at once");
}
