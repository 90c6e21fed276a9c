

# As the language has it: a send to a closed connection is an error, not the end.
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
signal.alarm(100)
print(globals()[sys.argv[1]]())
