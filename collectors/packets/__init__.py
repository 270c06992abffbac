"""RoCEv2 packets of captures and of live interfaces."""
