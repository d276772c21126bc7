//! freshd
pub mod config;
pub mod ctl;
pub mod daemon;
pub mod demo;
pub mod local_api;
pub mod profile;
pub mod refresh;
pub mod store;
pub mod token_endpoint;
