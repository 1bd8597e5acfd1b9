#![no_main]

use std::sync::Once;

// A panic of the tokenizers crate is caught by the reader; libFuzzer's hook would abort at it. One that
// nobody catches still ends the run.
static NO_HOOK: Once = Once::new();

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    NO_HOOK.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    chandler_fuzz::target("tokenizer_json").unwrap().run(input);
});
