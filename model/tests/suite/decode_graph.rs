//! Decode steps that a GPU has recorded, against those that it does op by op. On the CPU there is
//! nothing to record, and both are the same.

use candle_core::DType;
use chandler_model::{CausalLm, KvCache};

use crate::support::{device, flat, golden_folder, model_folder};

/// Tokens of the prompt in each row of the cache.
const PROMPTS: [usize; 3] = [7, 40, 507];

/// The rows that each step extends, and whether it is launched as a graph.
const STEPS: [(&[usize], bool); 10] = [
    (&[1, 0, 2], false),
    (&[1, 0, 2], true),
    (&[1, 0, 2], true),
    (&[0, 2, 1], true),
    (&[1, 0, 2], true),
    // The last row grows beyond 512 tokens.
    (&[1, 0, 2], true),
    (&[1, 2], false),
    (&[1, 2], true),
    (&[2, 1], true),
    (&[2], false),
];

/// The logits of each step, and which of them were launched as graphs.
fn run(model: &CausalLm, mut cache: KvCache) -> (Vec<Vec<f64>>, Vec<bool>) {
    let token = |row: usize, at: usize| ((at * 37 + 11 * row + 5) % 2000) as u32;
    let mut lens = PROMPTS;
    for (row, len) in lens.into_iter().enumerate() {
        let text: Vec<u32> = (0..len).map(|at| token(row, at)).collect();
        model.forward_cached(&[(row, &text)], &mut cache).unwrap();
    }
    let (mut logits, mut recorded) = (vec![], vec![]);
    for (rows, _) in STEPS {
        let new: Vec<[u32; 1]> = rows.iter().map(|row| [token(*row, lens[*row])]).collect();
        let inputs: Vec<(usize, &[u32])> =
            rows.iter().zip(&new).map(|(row, token)| (*row, &token[..])).collect();
        logits.push(flat(&model.forward_cached(&inputs, &mut cache).unwrap()));
        recorded.push(cache.is_recorded());
        for row in rows {
            lens[*row] += 1;
        }
    }
    (logits, recorded)
}

fn check(model: &CausalLm, what: &str) {
    let cache = || KvCache::new(model.config(), 3, 600, model.dtype(), model.device()).unwrap();
    let (expected, recorded) = run(model, cache().op_by_op());
    assert!(!recorded.contains(&true), "{what}");
    let (found, recorded) = run(model, cache());
    let expected_of = |(_, recorded): &(&[usize], bool)| *recorded && model.device().is_cuda();
    assert_eq!(recorded, STEPS.iter().map(expected_of).collect::<Vec<_>>(), "{what}");
    for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!(found == expected, "{what}: step {step}");
    }
}

#[test]
fn a_recorded_step_has_the_bits_of_its_ops() {
    for name in ["qwen3", "qwen2", "gemma2", "gemma3"] {
        for dtype in [DType::F32, DType::BF16] {
            let model = CausalLm::load(&model_folder(name), Some(dtype), &device()).unwrap();
            check(&model, &format!("{name} {dtype:?}"));
        }
    }
}

#[test]
fn a_recorded_step_goes_through_the_adapter() {
    let mut model = CausalLm::load(&model_folder("qwen3"), Some(DType::BF16), &device()).unwrap();
    model.load_adapter(&golden_folder("qwen3").join("lora_after")).unwrap();
    check(&model, "qwen3 with an adapter");
}

/// A cache goes on with another model than its graph is for.
#[test]
fn other_weights_are_other_steps() {
    let load = || CausalLm::load(&model_folder("smol-llama"), Some(DType::F32), &device()).unwrap();
    let (one, other) = (load(), load());
    let mut cache = KvCache::new(one.config(), 1, 16, DType::F32, one.device()).unwrap();
    one.forward_cached(&[(0, &[1, 2, 3])], &mut cache).unwrap();
    let mut recorded = vec![];
    for model in [&one, &one, &one, &other, &other] {
        model.forward_cached(&[(0, &[4])], &mut cache).unwrap();
        recorded.push(cache.is_recorded());
    }
    let on_gpu = one.device().is_cuda();
    assert_eq!(recorded, [false, on_gpu, on_gpu, false, on_gpu]);
}
