//! The machine's behaviour, first as stories with one fault each, then as random nights.

mod boot;
mod cables;
mod conditions;
mod costs;
mod crashes;
mod exits;
mod explain;
mod gangs;
mod gpu;
mod kit;
mod ladder;
mod learning;
mod link_faults;
mod link_records;
mod link_tests;
mod links;
mod parking;
mod random_nights;
mod reboots;
mod silence;
mod sim;
mod stories;
mod versions;
mod windows;
mod work;
mod workers;
