// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The executable; what it does is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    coracle::main()
}
