"""The lab: virtual physical servers, each a VM of this host's daemon with a daemon of its own."""
