#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    chandler_fuzz::target("jsonl_file").unwrap().run(input);
});
