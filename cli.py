from netsim_ddp.cli import main

main()
