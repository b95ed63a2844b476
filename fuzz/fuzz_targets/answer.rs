#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| world_postgres_fuzz::answer(data));
