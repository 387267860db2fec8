"""`hrmedseg compare`: trained models of a data set side by side, with statistics, cost and a report to look at."""
