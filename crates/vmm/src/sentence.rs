// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An error as a person reads it.

use std::error::Error;

/// An error and its reasons in one line.
pub(crate) fn sentence(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(reason) = source {
        line.push_str(": ");
        line.push_str(&reason.to_string());
        source = reason.source();
    }
    line
}
