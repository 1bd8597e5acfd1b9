//! Decoding with a cache against the forward pass over the whole text.

use candle_core::{DType, Device};
use chandler_model::{KvCache, ModelError, SequenceLayout};

use crate::support::{MODELS, flat, largest_difference, load};

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
        let mut cache = KvCache::new(model.config(), 2, 41, DType::F32, &Device::Cpu).unwrap();
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
    let mut cache = KvCache::new(model.config(), 1, 4, DType::F32, &Device::Cpu).unwrap();
    let error = model.forward_cached(&[(0, &[1, 2, 3, 4, 5])], &mut cache).unwrap_err();
    assert!(matches!(error, ModelError::CacheFull { wanted: 5, capacity: 4 }), "{error}");
    assert_eq!(cache.len(0), 0);
}
