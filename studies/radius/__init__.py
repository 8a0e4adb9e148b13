"""Units of the radius: in which one does a value carry over from one data set to another?"""
