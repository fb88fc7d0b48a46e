// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a registry is shown: credentials that were given, those of docker's `config.json`, and those of the
//! credential helpers that it names. None is ever printed.
//!
//! ```text
//! secret   a text that does not show itself
//! file     config.json: whom which credentials are for
//! helper   docker-credential-NAME
//! find     from a registry to its credentials
//! ```

mod file;
mod find;
mod helper;
mod secret;

pub use self::file::{DockerConfig, Entry};
pub(crate) use self::find::find;
pub use self::secret::Secret;

/// What proves who is asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// A user and a password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A token for the token server, which gives another for the registry.
    IdentityToken(Secret),
    /// A token for the registry itself.
    RegistryToken(Secret),
}
