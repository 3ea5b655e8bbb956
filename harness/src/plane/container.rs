//! The backend `container`: being written.
