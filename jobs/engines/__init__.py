"""Where the tasks of a run are done: in this process, on Ray, or on several devices that hold a model together."""
