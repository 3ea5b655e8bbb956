//! The files of the servers: in the volume of a container that is never started, which theirs mount.
//!
//! The engine takes some 75 ms for each archive that is put into a container, whatever is in it, and testcontainers puts
//! each file in one of its own: a dozen of them took as long as the API server to be ready.

use std::collections::HashMap;
use std::io;

use testcontainers::bollard::errors::Error;
use testcontainers::bollard::models::ContainerCreateBody;
use testcontainers::bollard::query_parameters::{
    CreateContainerOptions, UploadToContainerOptionsBuilder,
};
use testcontainers::bollard::{Docker, body_full};

use super::FILES;
use super::engine::failed;
use crate::plane::backend::ServerFile;
use crate::plane::error::StartErrorKind;

/// The files as a tar archive; nobody but their owner may read them.
pub(super) fn archive(files: &[ServerFile]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(file.content.len() as u64);
        header.set_mode(0o600);
        archive.append_data(&mut header, file.name, file.content.as_bytes())?;
    }
    archive.into_inner()
}

/// Makes the container, if it is not there: the name is this plane's alone.
pub(super) async fn make(
    docker: &Docker,
    name: &str,
    image: String,
    labels: HashMap<String, String>,
) -> Result<(), StartErrorKind> {
    let container = ContainerCreateBody {
        image: Some(image),
        labels: Some(labels),
        network_disabled: Some(true),
        volumes: Some(vec![FILES.trim_end_matches('/').to_owned()]),
        ..Default::default()
    };
    let options = CreateContainerOptions { name: Some(name.to_owned()), ..Default::default() };
    match docker.create_container(Some(options), container).await {
        Ok(_) | Err(Error::DockerResponseServerError { status_code: 409, .. }) => Ok(()),
        Err(error) => Err(failed("make a container for the servers' files", &error)),
    }
}

/// Puts an archive into its volume.
pub(super) async fn copy(
    docker: &Docker,
    name: &str,
    archive: Vec<u8>,
) -> Result<(), StartErrorKind> {
    let options = UploadToContainerOptionsBuilder::new().path(FILES).build();
    let copied = docker.upload_to_container(name, Some(options), body_full(archive.into())).await;
    copied.map_err(|error| failed("copy the servers' files", &error))
}
