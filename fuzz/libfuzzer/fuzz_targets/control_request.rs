#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    chandler_fuzz::target("control_request").unwrap().run(input);
});
