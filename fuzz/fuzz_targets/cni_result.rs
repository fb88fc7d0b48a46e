// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What CNI plugins print.
#![no_main]

use coracle_network::fuzzing::CniResult;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(result) = CniResult::parse(bytes) {
        // What becomes lines of a guest's resolv.conf must stay the lines that they are.
        let dns = result.to_dns();
        let keywords = ["nameserver ", "search ", "options "];
        for line in dns.to_resolv_conf().lines() {
            assert!(
                keywords.iter().any(|keyword| line.starts_with(keyword)),
                "{line:?}"
            );
        }
    }
});
