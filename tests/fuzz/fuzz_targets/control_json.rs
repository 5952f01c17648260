#![no_main]

use std::sync::LazyLock;

use harness::fuzz::{ControlJson, Target as _};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<ControlJson> = LazyLock::new(ControlJson::start);

fuzz_target!(|data: &[u8]| TARGET.run(data));
