// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What pulls images.

use coracle_oci::image::Name;

use crate::error::RegistryError;
use crate::http::Http;
use crate::options::Options;
use crate::progress::Progress;
use crate::pull::{self, Pulled};
use crate::session::Session;
use crate::sink::Sink;

/// A client of registries. It keeps connections, and can be used from several threads at once.
pub struct Client {
    http: Http,
}

impl Client {
    /// A client that goes by `options`. Nothing is read or connected to yet.
    pub fn new(options: Options) -> Self {
        Self {
            http: Http::new(options),
        }
    }

    /// Pulls the blobs of an image for [`PLATFORM`](coracle_oci::image::PLATFORM) into `sink`, the manifest last. Those that
    /// are there already are not pulled. Each is checked against its digest and size.
    ///
    /// # Errors
    ///
    /// Each kind of [`RegistryError`]. What may pass was tried again before, see [`Retry`](crate::Retry).
    pub fn pull(
        &self,
        name: &Name,
        sink: &dyn Sink,
        progress: &dyn Progress,
    ) -> Result<Pulled, RegistryError> {
        let session = Session::new(&self.http, name)?;
        pull::pull(self.http.options(), &session, name, sink, progress)
    }
}
