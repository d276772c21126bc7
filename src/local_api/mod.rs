//! The local API: HTTP/1.1 and JSON over Unix sockets.

pub mod keeper;
pub mod types;
