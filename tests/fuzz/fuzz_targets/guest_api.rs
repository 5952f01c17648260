#![no_main]

use std::sync::LazyLock;

use harness::fuzz::{GuestApi, Target as _};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<GuestApi> = LazyLock::new(GuestApi::start);

fuzz_target!(|data: &[u8]| TARGET.run(data));
