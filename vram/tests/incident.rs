//! The incident from which this project began, played back: one card of 23.63 GiB, Qwen3-0.6B in
//! batches of 16 x 4096, a cache that an evaluation left behind, and a second daemon.

use chandler_vram::{Category, GpuMeter, Ledger, RecordedGpus, Shortage};

const MIB: u64 = 1 << 20;
const OWN_PID: u32 = 4711;

/// Four readings: alone, beside a second daemon, that has grown, and a card that has vanished.
const RECORDING: &str = include_str!("incident.jsonl");

#[test]
fn the_sentence_names_everybody() {
    let meter = RecordedGpus::from_json_lines(RECORDING).unwrap();
    let ledger = Ledger::new();
    let _weights = ledger.enter(Category::Weights, 1137 * MIB);
    let _activations = ledger.enter(Category::Activations, 1100 * MIB);
    let alone = meter.gpus().unwrap();
    assert!(alone[0].free.unwrap() > 742 * MIB);
    // What the evaluation of step 50 left behind, at 2048 new tokens.
    let _cache = ledger.enter(Category::KvCache, 7332 * MIB);
    let (_beside, grown) = (meter.gpus().unwrap(), meter.gpus().unwrap());
    assert_eq!(grown[0].free, Some(698 * MIB));
    let shortage = Shortage::on_gpu(Some(742 * MIB), &grown[0], OWN_PID, ledger.snapshot());
    assert_eq!(
        shortage.to_string(),
        "742.00 MiB could not be had: of 23.63 GiB python (pid 815) holds 12.40 GiB, this process \
         9.34 GiB (kv_cache 7.16 GiB, weights 1.11 GiB, activations 1.07 GiB), and 698.00 MiB is \
         free"
    );
    assert_eq!(shortage.culprit().as_deref(), Some("python (pid 815)"));
    // A card that is gone is no card of 0 bytes.
    assert_eq!((meter.gpus(), meter.gpus()), (None, None));
}

#[test]
fn what_a_container_hides_is_unknown() {
    let hidden = r#"[{"index":0,"uuid":null,"name":"MIG 1g.10gb","used":9000000000,
        "total":10000000000,"free":null,"processes":[{"pid":1,"used":null,"name":null}]}]"#;
    let meter = RecordedGpus::from_json_lines(&hidden.replace('\n', " ")).unwrap();
    let gpu = &meter.gpus().unwrap()[0];
    let shortage = Shortage::on_gpu(None, gpu, OWN_PID, Ledger::new().snapshot());
    assert_eq!(
        shortage.to_string(),
        "memory ran out: of 9.31 GiB a process (pid 1) holds an unknown amount, this process 0 B, \
         and an unknown amount is free"
    );
    assert_eq!(shortage.culprit(), None);
}
